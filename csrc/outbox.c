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
	struct rtl_request *q = rtl_table_find(r, id);

	return q && q->opcode == RTL_OUTBOX ? q : NULL;
}

static void park(struct rtl_ring *r, struct rtl_request *q)
{
	q->state = RTL_PARKED;
	r->n.idle++;
}

int rtl_outbox_open(struct rtl_ring *r, uint64_t id, int fd)
{
	struct rtl_request *q;
	int error = rtl_table_add(r, id, RTL_OUTBOX, fd, &q);

	if (error)
		return error;
	park(r, q);
	return 0;
}

static void start(struct rtl_ring *r, struct rtl_request *q)
{
	r->n.idle--;
	rtl_queue(r, q);
}

/* The bytes join the last segment. A send in flight has its own length. */
static bool join(struct rtl_request *q, const void *buf, unsigned int len)
{
	struct rtl_segment *last = q->u.out.last;

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
	struct rtl_request *q = find(r, id);
	struct rtl_segment *s;

	if (!q || q->state == RTL_ENDED || q->cancelling || q->u.out.shutting_down)
		return -EPIPE;
	if (!len)
		return (int64_t)q->u.out.pending;
	if (segment_id || !join(q, buf, len)) {
		s = new_segment(buf, len, segment_id);
		if (!s)
			return -ENOMEM;
		if (q->u.out.head)
			q->u.out.last->next = s;
		else
			q->u.out.head = s;
		q->u.out.last = s;
	}
	q->u.out.pending += len;
	if (q->state == RTL_PARKED)
		start(r, q);
	return (int64_t)q->u.out.pending;
}

/* How much is pending; if not less than that, a event will come when it is. */
int64_t rtl_outbox_notify_below(struct rtl_ring *r, uint64_t id, uint64_t below)
{
	struct rtl_request *q = find(r, id);

	if (!q)
		return -EPIPE;
	if (q->u.out.pending >= below && q->u.out.below < below)
		q->u.out.below = below;
	return (int64_t)q->u.out.pending;
}

void rtl_outbox_prepare(const struct rtl_request *q, struct io_uring_sqe *sqe)
{
	const struct rtl_segment *s = q->u.out.head;

	io_uring_prep_send(sqe, q->fd, s->base, s->len,
			   MSG_NOSIGNAL | MSG_WAITALL);
}

static void drop_head(struct rtl_ring *r, struct rtl_request *q)
{
	struct rtl_segment *s = q->u.out.head;

	q->u.out.pending -= s->len;
	q->u.out.head = s->next;
	if (!s->next)
		q->u.out.last = NULL;
	if (!s->id) {
		free(s);
		return;
	}
	s->next = r->returned;
	r->returned = s;
}

static void drop_all(struct rtl_ring *r, struct rtl_request *q)
{
	while (q->u.out.head)
		drop_head(r, q);
}

static void advance(struct rtl_ring *r, struct rtl_request *q, unsigned int sent)
{
	struct rtl_segment *s = q->u.out.head;

	q->u.out.pending -= sent;
	s->base += sent;
	s->len -= sent;
	if (!s->len)
		drop_head(r, q);
}

/* End it without a event. */
static void bury(struct rtl_ring *r, struct rtl_request *q)
{
	int fd = q->fd;

	drop_all(r, q);
	rtl_table_remove(r, q);
	rtl_close_fd_event(r, fd);
}

/* It has no send in flight. */
void rtl_outbox_cancel(struct rtl_ring *r, struct rtl_request *q)
{
	if (q->state == RTL_ENDED)
		return;
	if (q->state == RTL_QUEUED)
		rtl_fifo_remove(&r->queued, q);
	else
		r->n.idle--;
	drop_all(r, q);
	rtl_uncancel(q);
	rtl_end(r, q, -ECANCELED);
	rtl_close_fd_event(r, q->fd);
}

/*
 * 0 when all is sent, else -errno; -EAGAIN: the socket takes no more now.
 * MSG_MORE: the FIN that follows goes out in the same segment.
 */
static int send_now(struct rtl_ring *r, struct rtl_request *q)
{
	while (q->u.out.head) {
		struct rtl_segment *s = q->u.out.head;
		ssize_t sent = send(q->fd, s->base, s->len,
				    MSG_NOSIGNAL | MSG_DONTWAIT | MSG_MORE);

		if (sent < 0)
			return rtl_is_passing(-errno) ? -EAGAIN : -errno;
		r->n.bytes_sent += (uint64_t)sent;
		advance(r, q, (unsigned int)sent);
	}
	return 0;
}

/* The deadline is over: what the socket takes now is all. */
static int send_last(struct rtl_ring *r, struct rtl_request *q)
{
	int error = send_now(r, q);

	return error == -EAGAIN ? -ETIMEDOUT : error;
}

/* What a send's result means: 0 to go on, or the error that ends the outbox. */
static int take_result(struct rtl_ring *r, struct rtl_request *q, int result)
{
	bool interrupted = result == -ECANCELED && q->u.out.shutting_down;

	if (result > 0) {
		advance(r, q, (unsigned int)result);
		q->tries = 0;
	} else if (!interrupted &&
		   (!rtl_is_passing(result) || ++q->tries > RTL_MAX_TRIES)) {
		return result;
	}
	if (q->cancelling)
		return -ECANCELED;
	return rtl_is_past(q) ? send_last(r, q) : 0;
}

/*
 * Returns the number of events written: 0 or 1. That it broke is told in the
 * order of completions: what the input makes of its end depends on it.
 */
unsigned int rtl_outbox_sent(struct rtl_ring *r, struct rtl_request *q,
			     int result, int64_t *event)
{
	int error = take_result(r, q, result);

	if (error || (q->u.out.shutting_down && !q->u.out.head)) {
		uint64_t id = q->id;

		bury(r, q);
		return rtl_event(event, id, error, RTL_OVER);
	}
	if (q->u.out.head)
		rtl_queue(r, q);
	else
		park(r, q);
	if (q->u.out.pending >= q->u.out.below)
		return 0;
	q->u.out.below = 0;
	return rtl_event(event, q->id, (int64_t)q->u.out.pending, RTL_PROGRESS);
}

/*
 * Send the rest until the deadline, then end. Returns 0 or -errno if that is
 * done: the outbox is gone. Returns 1 if a event will tell.
 */
int rtl_outbox_shutdown(struct rtl_ring *r, uint64_t id, int64_t deadline_ns)
{
	struct rtl_request *q = find(r, id);
	int error;

	if (!q || q->state == RTL_ENDED)
		return q ? 1 : -EPIPE;
	q->u.out.shutting_down = true;
	rtl_set_deadline(q, deadline_ns);
	if (q->state == RTL_IN_FLIGHT) {
		rtl_want_cancel(r, q);	/* to be sent anew, with the deadline */
		return 1;
	}
	error = rtl_is_past(q) ? send_last(r, q) : send_now(r, q);
	if (error == -EAGAIN)
		return 1;	/* it is queued */
	if (q->state == RTL_QUEUED)
		rtl_fifo_remove(&r->queued, q);
	else
		r->n.idle--;
	bury(r, q);
	return error;
}

/* True if a send's completion needs nobody's attention. */
bool rtl_outbox_is_silent(const struct rtl_ring *r, uint64_t id, int result)
{
	const struct rtl_request *q = find(r, id);

	return q && result > 0 && !q->cancelling && !q->timed &&
	       !q->u.out.below && !q->u.out.head->id &&
	       (unsigned int)result == q->u.out.pending;
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
