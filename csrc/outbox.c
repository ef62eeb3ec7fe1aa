/* SPDX-License-Identifier: MIT */
/*
 * What a stream has accepted for sending and the kernel has not: bytes, in
 * order.
 *
 *  1. Writing never blocks. Writers must look at what is pending, and hold
 *     back.
 *  2. At most one send is in flight. When it ends short, the next goes on
 *     where it ended: a TLS record is never torn. (Why not with MSG_WAITALL
 *     is said in send.c.)
 *  3. A small piece is copied: that is cheaper than to tell its owner when it
 *     may go. A larger one is sent at once as far as the socket takes it, if
 *     nothing is unsent before it; mostly that is all. The rest is borrowed: it
 *     is a segment in the caller's memory, until an event that has the
 *     segment's id says that it is over.
 *  4. After rtl_outbox_shutdown() every send has the deadline, and there is at
 *     least one try. What the socket takes at once is sent at once, or with the
 *     FIN.
 *  5. An outbox that breaks, or is cancelled, drops what is in it, and is
 *     over.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "internal.h"

/* Room that a new segment has, so that what follows soon joins it. */
#define SEGMENT_ROOM 512u

struct rtl_segment {
	struct rtl_notice notice; /* must be first; of a borrowed one the id */
	struct rtl_segment *next;
	const unsigned char *base;	/* what is unsent */
	unsigned int len;
	unsigned int left;	/* unused room */
	unsigned char *end;	/* where that is */
	unsigned char room[];
};

static struct rtl_request *find(const struct rtl_ring *r, uint64_t id)
{
	struct rtl_request *req = rtl_table_find(r, id);

	return req && req->op == &rtl_outbox_operation ? req : NULL;
}

static void park(struct rtl_ring *r, struct rtl_request *req)
{
	req->state = RTL_PARKED;
	r->stats.idle++;
}

/* It was parked, or queued: take it out of there. */
static void unpark(struct rtl_ring *r, struct rtl_request *req)
{
	if (req->state == RTL_QUEUED)
		rtl_unqueue(r, req);
	else
		r->stats.idle--;
}

/* Add to the last segment. If that is being sent, the send has its length. */
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
	s->notice.id = segment_id;
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

static void outbox_prepare(const struct rtl_ring *r,
			   const struct rtl_request *req,
			   struct io_uring_sqe *sqe)
{
	const struct rtl_segment *s = req->u.out.head;

	(void)r;
	io_uring_prep_send(sqe, req->fd, s->base, s->len, MSG_NOSIGNAL);
}

static int outbox_attempt(struct rtl_ring *r, struct rtl_request *req,
			  struct rtl_completion *c)
{
	const struct rtl_segment *s = req->u.out.head;

	(void)r;
	(void)c;
	return rtl_result(send(req->fd, s->base, s->len,
			       MSG_NOSIGNAL | MSG_DONTWAIT));
}

static void drop_head(struct rtl_ring *r, struct rtl_request *req)
{
	struct rtl_segment *s = req->u.out.head;

	req->u.out.pending -= s->len;
	req->u.out.head = s->next;
	if (!s->next)
		req->u.out.last = NULL;
	if (!s->notice.id) {
		free(s);
		return;
	}
	s->notice.next = r->notices;
	r->notices = &s->notice;
}

static void drop_all(struct rtl_ring *r, struct rtl_request *req)
{
	while (req->u.out.head)
		drop_head(r, req);
}

static void skip(struct rtl_segment *s, unsigned int sent)
{
	s->base += sent;
	s->len -= sent;
}

static void advance(struct rtl_ring *r, struct rtl_request *req,
		    unsigned int sent)
{
	struct rtl_segment *s = req->u.out.head;

	req->u.out.pending -= sent;
	skip(s, sent);
	if (!s->len)
		drop_head(r, req);
}

static void outbox_cancel(struct rtl_ring *r, struct rtl_request *req)
{
	req->cancelling = true;
	if (req->state == RTL_IN_FLIGHT) {
		rtl_want_cancel(r, req);
		return;
	}
	unpark(r, req);
	drop_all(r, req);
	rtl_end(r, req, -ECANCELED);
}

/* How much the socket takes now, or -errno; -EAGAIN: nothing now. */
static ssize_t send_now(struct rtl_ring *r, int fd, const struct rtl_segment *s,
			int flags)
{
	ssize_t sent = send(fd, s->base, s->len,
			    MSG_NOSIGNAL | MSG_DONTWAIT | flags);

	if (sent < 0)
		return rtl_is_passing(-errno) ? -EAGAIN : -errno;
	r->stats.bytes_sent += (uint64_t)sent;
	return sent;
}

/*
 * 0 when all is sent, else -errno; -EAGAIN: the socket takes no more now.
 * MSG_MORE: the FIN that follows goes out in the same segment.
 */
static int send_all_now(struct rtl_ring *r, struct rtl_request *req)
{
	while (req->u.out.head) {
		ssize_t sent = send_now(r, req->fd, req->u.out.head, MSG_MORE);

		if (sent < 0)
			return (int)sent;
		advance(r, req, (unsigned int)sent);
	}
	return 0;
}

/* The deadline is over: what the socket takes now is all. */
static int send_last(struct rtl_ring *r, struct rtl_request *req)
{
	int error = send_all_now(r, req);

	return error == -EAGAIN ? -ETIMEDOUT : error;
}

/* What a send's result means: 0 to go on, or the error that ends the outbox. */
static int take_result(struct rtl_ring *r, struct rtl_request *req, int result)
{
	bool interrupted = rtl_is_interruption(result) &&
			   req->u.out.shutting_down;

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
 * A failure is reported in the order of completions: input that ends behind it
 * has not ended in order, for the kernel tells of a reset but once.
 */
static void outbox_complete(struct rtl_ring *r, struct rtl_request *req,
			    const struct rtl_completion *c,
			    struct rtl_events *e)
{
	int error = take_result(r, req, c->result);

	if (error || (req->u.out.shutting_down && !req->u.out.head)) {
		drop_all(r, req);
		rtl_over(r, req, error, e);
		return;
	}
	if (req->u.out.head)
		rtl_queue(r, req);
	else
		park(r, req);
	if (req->u.out.pending >= req->u.out.below)
		return;
	req->u.out.below = 0;
	rtl_event(e, req->id, (int64_t)req->u.out.pending, RTL_PROGRESS);
}

static bool outbox_is_silent(const struct rtl_request *req, int result)
{
	return result > 0 && !req->cancelling && !req->u.out.shutting_down &&
	       !req->u.out.below && !req->u.out.head->notice.id &&
	       (unsigned int)result == req->u.out.pending;
}

const struct rtl_operation rtl_outbox_operation = {
	.kernel_opcode = IORING_OP_SEND,
	.awaits = POLLOUT,
	.direction = RTL_OUT,
	.life = RTL_ENDS_AT_RELEASE,
	.prepare = outbox_prepare,
	.attempt = outbox_attempt,
	.complete = outbox_complete,
	.is_silent = outbox_is_silent,
	.cancel = outbox_cancel,
};

int rtl_outbox_open(struct rtl_ring *r, uint64_t id, int fd)
{
	struct rtl_request *req;
	int error = rtl_table_add(r, id, &rtl_outbox_operation, fd, &req);

	if (error)
		return error;
	req->deadline_ns = RTL_NO_DEADLINE;
	park(r, req);
	return 0;
}

static void append(struct rtl_request *req, struct rtl_segment *s)
{
	if (req->u.out.head)
		req->u.out.last->next = s;
	else
		req->u.out.head = s;
	req->u.out.last = s;
}

/* Send what the socket takes, if any. -errno: the connection is broken. */
static int begin_to_send(struct rtl_ring *r, int fd, struct rtl_segment *s)
{
	ssize_t sent = send_now(r, fd, s, 0);

	if (sent < 0)
		return sent == -EAGAIN ? 0 : (int)sent;
	skip(s, (unsigned int)sent);
	return 0;
}

int64_t rtl_outbox_write(struct rtl_ring *r, uint64_t id, const void *buf,
		unsigned int len, uint64_t segment_id)
{
	struct rtl_request *req = find(r, id);
	struct rtl_segment *s;
	int error = 0;

	if (!req || req->state == RTL_ENDED)
		return -ENOENT;
	if (req->cancelling || req->u.out.shutting_down)
		return -EPIPE;
	if (!len)
		return (int64_t)req->u.out.pending;
	if (segment_id || !join(req, buf, len)) {
		s = new_segment(buf, len, segment_id);
		if (!s)
			return -ENOMEM;
		if (segment_id && req->state == RTL_PARKED)
			error = begin_to_send(r, req->fd, s);
		if (error || !s->len) {
			free(s);
			return error;
		}
		len = s->len;
		append(req, s);
	}
	req->u.out.pending += len;
	if (req->state == RTL_PARKED) {
		r->stats.idle--;
		rtl_queue(r, req);
	}
	return (int64_t)req->u.out.pending;
}

int64_t rtl_outbox_notify_below(struct rtl_ring *r, uint64_t id, uint64_t below)
{
	struct rtl_request *req = find(r, id);

	if (!req)
		return -ENOENT;
	if (req->u.out.pending >= below && req->u.out.below < below)
		req->u.out.below = below;
	return (int64_t)req->u.out.pending;
}

int rtl_outbox_shutdown(struct rtl_ring *r, uint64_t id, int64_t deadline_ns)
{
	struct rtl_request *req = find(r, id);
	int error;

	if (!req || req->state == RTL_ENDED)
		return req ? 1 : -ENOENT;
	req->u.out.shutting_down = true;
	req->deadline_ns = deadline_ns;
	if (req->state == RTL_IN_FLIGHT) {
		/* To be sent anew, with the deadline. */
		rtl_want_cancel(r, req);
		return 1;
	}
	error = rtl_is_past(req) ? send_last(r, req) : send_all_now(r, req);
	if (error == -EAGAIN)
		return 1;	/* it is queued */
	unpark(r, req);
	drop_all(r, req);
	rtl_forget(r, req);
	return error;
}
