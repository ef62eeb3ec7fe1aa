/* SPDX-License-Identifier: MIT */
/*
 * What a stream has accepted for sending and the kernel has not: bytes, in
 * order.
 *
 *  1. Putting never blocks. Who puts must look at what is pending, and hold
 *     back.
 *  2. At most one send is in flight. When it ends short, the next goes on
 *     where it ended: a TLS record is never torn.
 *  3. Small pieces are copied: that is cheaper than to tell their owner when
 *     they can go. A larger one is borrowed: a segment that is the caller's, until
 *     a event that has the segment's id says that it is over.
 *  4. After rtl_outbox_shutdown() every send has the deadline, and there is at least
 *     one try. What the socket takes at once is sent at once, or with the FIN.
 *  5. An outbox that breaks, or is cancelled, drops what is in it, and is
 *     over.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

/* Room that a new segment has, so that what follows soon joins it. */
#define SEGMENT_ROOM 512u

struct rtl_segment {
	struct rtl_segment *next;
	uint64_t id;		/* of a borrowed one; 0: in room */
	const unsigned char *base;	/* what is unsent */
	unsigned int len;
	unsigned int left;	/* unused room */
	unsigned char *end;	/* where that is */
	unsigned char room[];
};

static struct rtl_request *find(const struct rtl_ring *r, uint64_t id)
{
	struct rtl_request *req = rtl_table_find(r, id);

	return req && req->opcode == RTL_OUTBOX ? req : NULL;
}

static void park(struct rtl_ring *r, struct rtl_request *req)
{
	req->state = RTL_PARKED;
	r->stats.idle++;
}

int rtl_outbox_open(struct rtl_ring *r, uint64_t id, int fd)
{
	struct rtl_request *req;
	int error = rtl_table_add(r, id, RTL_OUTBOX, fd, &req);

	if (error)
		return error;
	park(r, req);
	return 0;
}

static void start(struct rtl_ring *r, struct rtl_request *req)
{
	r->stats.idle--;
	rtl_queue(r, req);
}

/* The bytes join the last segment. A send in flight has its own length. */
static bool join(struct rtl_request *req, const void *buf, unsigned int len)
{
	struct rtl_segment *last = req->u.out.last;

	if (!last || last->left < len)
		return false;
	memcpy(last->end, buf, len);
	last->end += len;
	last->len += len;
	last->left -= len;
	return true;
}

static struct rtl_segment *new_segment(const void *buf, unsigned int len,
				       uint64_t segment_id)
{
	size_t room = segment_id ? 0 : len > SEGMENT_ROOM ? len : SEGMENT_ROOM;
	struct rtl_segment *s = malloc(sizeof(*s) + room);

	if (!s)
		return NULL;
	s->next = NULL;
	s->id = segment_id;
	s->base = segment_id ? buf : s->room;
	s->len = len;
	s->left = 0;
	s->end = s->room;
	if (!segment_id) {
		memcpy(s->room, buf, len);
		s->end += len;
		s->left = (unsigned int)room - len;
	}
	return s;
}

/*
 * Accept bytes; returns how many are pending. They are copied, or with a
 * segment's id borrowed.
 */
int64_t rtl_outbox_write(struct rtl_ring *r, uint64_t id, const void *buf,
		unsigned int len, uint64_t segment_id)
{
	struct rtl_request *req = find(r, id);
	struct rtl_segment *s;

	if (!req || req->state == RTL_ENDED || req->cancelling || req->u.out.shutting_down)
		return -EPIPE;
	if (!len)
		return (int64_t)req->u.out.pending;
	if (segment_id || !join(req, buf, len)) {
		s = new_segment(buf, len, segment_id);
		if (!s)
			return -ENOMEM;
		if (req->u.out.head)
			req->u.out.last->next = s;
		else
			req->u.out.head = s;
		req->u.out.last = s;
	}
	req->u.out.pending += len;
	if (req->state == RTL_PARKED)
		start(r, req);
	return (int64_t)req->u.out.pending;
}

/* How much is pending; if not less than that, a event will come when it is. */
int64_t rtl_outbox_notify_below(struct rtl_ring *r, uint64_t id, uint64_t below)
{
	struct rtl_request *req = find(r, id);

	if (!req)
		return -EPIPE;
	if (req->u.out.pending >= below && req->u.out.below < below)
		req->u.out.below = below;
	return (int64_t)req->u.out.pending;
}

void rtl_outbox_prepare(const struct rtl_request *req, struct io_uring_sqe *sqe)
{
	const struct rtl_segment *s = req->u.out.head;

	io_uring_prep_send(sqe, req->fd, s->base, s->len,
			   MSG_NOSIGNAL | MSG_WAITALL);
}

static void drop_head(struct rtl_ring *r, struct rtl_request *req)
{
	struct rtl_segment *s = req->u.out.head;

	req->u.out.pending -= s->len;
	req->u.out.head = s->next;
	if (!s->next)
		req->u.out.last = NULL;
	if (!s->id) {
		free(s);
		return;
	}
	s->next = r->returned;
	r->returned = s;
}

static void drop_all(struct rtl_ring *r, struct rtl_request *req)
{
	while (req->u.out.head)
		drop_head(r, req);
}

static void advance(struct rtl_ring *r, struct rtl_request *req, unsigned int sent)
{
	struct rtl_segment *s = req->u.out.head;

	req->u.out.pending -= sent;
	s->base += sent;
	s->len -= sent;
	if (!s->len)
		drop_head(r, req);
}

/* End it without a event. */
static void bury(struct rtl_ring *r, struct rtl_request *req)
{
	int fd = req->fd;

	drop_all(r, req);
	rtl_table_remove(r, req);
	rtl_close_fd_event(r, fd);
}

/* It has no send in flight. */
void rtl_outbox_cancel(struct rtl_ring *r, struct rtl_request *req)
{
	if (req->state == RTL_ENDED)
		return;
	if (req->state == RTL_QUEUED)
		rtl_fifo_remove(&r->queued, req);
	else
		r->stats.idle--;
	drop_all(r, req);
	rtl_uncancel(req);
	rtl_end(r, req, -ECANCELED);
	rtl_close_fd_event(r, req->fd);
}

/*
 * 0 when all is sent, else -errno; -EAGAIN: the socket takes no more now.
 * MSG_MORE: the FIN that follows goes out in the same segment.
 */
static int send_now(struct rtl_ring *r, struct rtl_request *req)
{
	while (req->u.out.head) {
		struct rtl_segment *s = req->u.out.head;
		ssize_t sent = send(req->fd, s->base, s->len,
				    MSG_NOSIGNAL | MSG_DONTWAIT | MSG_MORE);

		if (sent < 0)
			return rtl_is_passing(-errno) ? -EAGAIN : -errno;
		r->stats.bytes_sent += (uint64_t)sent;
		advance(r, req, (unsigned int)sent);
	}
	return 0;
}

/* The deadline is over: what the socket takes now is all. */
static int send_last(struct rtl_ring *r, struct rtl_request *req)
{
	int error = send_now(r, req);

	return error == -EAGAIN ? -ETIMEDOUT : error;
}

/* What a send's result means: 0 to go on, or the error that ends the outbox. */
static int take_result(struct rtl_ring *r, struct rtl_request *req, int result)
{
	bool interrupted = result == -ECANCELED && req->u.out.shutting_down;

	if (result > 0) {
		advance(r, req, (unsigned int)result);
		req->tries = 0;
	} else if (!interrupted &&
		   (!rtl_is_passing(result) || ++req->tries > RTL_MAX_TRIES)) {
		return result;
	}
	if (req->cancelling)
		return -ECANCELED;
	return rtl_is_past(req) ? send_last(r, req) : 0;
}

/*
 * Returns the number of events written: 0 or 1. That it broke is told in the
 * order of completions: what the input makes of its end depends on it.
 */
unsigned int rtl_outbox_sent(struct rtl_ring *r, struct rtl_request *req,
			     int result, int64_t *event)
{
	int error = take_result(r, req, result);

	if (error || (req->u.out.shutting_down && !req->u.out.head)) {
		uint64_t id = req->id;

		bury(r, req);
		return rtl_event(event, id, error, RTL_OVER);
	}
	if (req->u.out.head)
		rtl_queue(r, req);
	else
		park(r, req);
	if (req->u.out.pending >= req->u.out.below)
		return 0;
	req->u.out.below = 0;
	return rtl_event(event, req->id, (int64_t)req->u.out.pending, RTL_PROGRESS);
}

/*
 * Send the rest until the deadline, then end. Returns 0 or -errno if that is
 * done: the outbox is gone. Returns 1 if a event will tell.
 */
int rtl_outbox_shutdown(struct rtl_ring *r, uint64_t id, int64_t deadline_ns)
{
	struct rtl_request *req = find(r, id);
	int error;

	if (!req || req->state == RTL_ENDED)
		return req ? 1 : -EPIPE;
	req->u.out.shutting_down = true;
	rtl_set_deadline(req, deadline_ns);
	if (req->state == RTL_IN_FLIGHT) {
		rtl_want_cancel(r, req);	/* to be sent anew, with the deadline */
		return 1;
	}
	error = rtl_is_past(req) ? send_last(r, req) : send_now(r, req);
	if (error == -EAGAIN)
		return 1;	/* it is queued */
	if (req->state == RTL_QUEUED)
		rtl_fifo_remove(&r->queued, req);
	else
		r->stats.idle--;
	bury(r, req);
	return error;
}

/* True if a send's completion needs nobody's attention. */
bool rtl_outbox_is_silent(const struct rtl_ring *r, uint64_t id, int result)
{
	const struct rtl_request *req = find(r, id);

	return req && result > 0 && !req->cancelling && !req->timed &&
	       !req->u.out.below && !req->u.out.head->id &&
	       (unsigned int)result == req->u.out.pending;
}

unsigned int rtl_outbox_report(struct rtl_ring *r, int64_t *events,
			       unsigned int max_events)
{
	unsigned int n = 0;

	while (n < max_events && r->returned) {
		struct rtl_segment *s = r->returned;

		r->returned = s->next;
		n += rtl_event(events + (size_t)n * RTL_EVENT_FIELDS, s->id, 0,
			     RTL_OVER);
		free(s);
	}
	return n;
}
