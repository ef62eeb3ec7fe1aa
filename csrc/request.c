/* SPDX-License-Identifier: MIT */
/*
 * The life of a request, which is the same for all operations:
 *
 *	QUEUED ------> IN_FLIGHT ------> over: its event is written, it is freed
 *	  ^  ^  ^          |
 *	  |  |  +----------+  try again, or go on
 *	  |  +-- WAITING_FOR_BUFFER <--+ the pool was dry
 *	  +-- PARKED <-----------------+ waits for others, or has nothing to do
 *
 *	ENDED: it is over, and rtl_reap() has yet to report it. From everywhere.
 *
 * Whatever ends it, the other requests on its fd are told (fd_changed): a close
 * may have waited for that.
 *
 * To cancel a request that is in flight, the kernel is asked to; it answers the
 * request all the same. Until the backend submits, what it is to be asked waits
 * in a list.
 */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

void rtl_fifo_init(struct rtl_fifo *f)
{
	f->head = NULL;
	f->tail = &f->head;
}

void rtl_fifo_push(struct rtl_fifo *f, struct rtl_request *req)
{
	req->next = NULL;
	*f->tail = req;
	f->tail = &req->next;
}

struct rtl_request *rtl_fifo_pop(struct rtl_fifo *f)
{
	struct rtl_request *req = f->head;

	if (!req)
		return NULL;
	f->head = req->next;
	if (!f->head)
		f->tail = &f->head;
	return req;
}

static void fifo_remove(struct rtl_fifo *f, struct rtl_request *req)
{
	struct rtl_request **link = &f->head;

	while (*link != req)
		link = &(*link)->next;
	*link = req->next;
	if (f->tail == &req->next)
		f->tail = link;
}

void rtl_requests_init(struct rtl_ring *r)
{
	rtl_fifo_init(&r->queued);
	rtl_fifo_init(&r->waiting);
	rtl_fifo_init(&r->ended);
}

/* Towards the kernel */

/* A new request, without a deadline, which goes out at the next submit. */
int rtl_request_add(struct rtl_ring *r, uint64_t id,
		    const struct rtl_operation *op, int fd,
		    struct rtl_request **out)
{
	int error = rtl_table_add(r, id, op, fd, out);

	if (error)
		return error;
	(*out)->deadline_ns = RTL_NO_DEADLINE;
	rtl_queue(r, *out);
	return 0;
}

/* A cancellation is for one try: it must not meet the next. */
void rtl_queue(struct rtl_ring *r, struct rtl_request *req)
{
	rtl_uncancel(req);
	req->parted = false;
	req->state = RTL_QUEUED;
	rtl_fifo_push(&r->queued, req);
}

struct rtl_request *rtl_unqueue_first(struct rtl_ring *r)
{
	return rtl_fifo_pop(&r->queued);
}

/* Take a request that is queued, or waits for a buffer, out of its FIFO. */
void rtl_unqueue(struct rtl_ring *r, struct rtl_request *req)
{
	if (req->state == RTL_WAITING_FOR_BUFFER)
		fifo_remove(&r->waiting, req);
	else
		fifo_remove(&r->queued, req);
}

/* Those that have waited longest for a buffer try again. */
void rtl_queue_waiting(struct rtl_ring *r, uint64_t most)
{
	while (most-- && r->waiting.head)
		rtl_queue(r, rtl_fifo_pop(&r->waiting));
}

/* Nothing was transferred, and the next try may succeed. */
bool rtl_is_passing(int result)
{
	return result == -EAGAIN || result == -EINTR || result == -ENOMEM ||
	       result == -ENOBUFS;
}

/* The kernel could not take all now, and will when something was reaped. */
bool rtl_is_shortage(int error)
{
	return error == -EAGAIN || error == -EBUSY || error == -ENOMEM;
}

/* Without a deadline there is always time. */
bool rtl_is_past(const struct rtl_request *req)
{
	return req->deadline_ns >= 0 && rtl_now_ns() >= req->deadline_ns;
}

/* When the next try must end, or RTL_NO_DEADLINE. */
int64_t rtl_limit_of(const struct rtl_ring *r, const struct rtl_request *req)
{
	return req->op->limit ? req->op->limit(r, req) : req->deadline_ns;
}

/* It is over */

/*
 * Tell the backend if the number is used by no request any more. One that has
 * ended does not: its number may be closed, and be another's, before it is
 * reported.
 */
static void leave_fd_unused(struct rtl_ring *r, int fd)
{
	const struct rtl_request *req = r->fds[fd].requests;

	while (req && req->state == RTL_ENDED)
		req = req->fd_next;
	if (!req)
		r->backend->leave_fd(r, fd);
}

static void fd_changed(struct rtl_ring *r, int fd)
{
	struct rtl_request *req, *next;

	if (!r->fds[fd].minding)
		return;
	for (req = r->fds[fd].requests; req; req = next) {
		next = req->fd_next;
		if (req->op->fd_changed)
			req->op->fd_changed(r, req);
	}
}

/* It is over, and nobody will be told, or was told already. */
void rtl_forget(struct rtl_ring *r, struct rtl_request *req)
{
	int fd = req->fd;

	rtl_uncancel(req);
	rtl_table_remove(r, req);
	leave_fd_unused(r, fd);
	fd_changed(r, fd);
}

/* It is over, and this is its last event. */
void rtl_over(struct rtl_ring *r, struct rtl_request *req, int result,
	      struct rtl_events *e)
{
	rtl_event(e, req->id, result, RTL_OVER);
	rtl_forget(r, req);
}

/* It is over, and the next rtl_reap() says so. */
void rtl_end(struct rtl_ring *r, struct rtl_request *req, int result)
{
	rtl_uncancel(req);
	req->state = RTL_ENDED;
	req->result = result;
	rtl_fifo_push(&r->ended, req);
	leave_fd_unused(r, req->fd);
	fd_changed(r, req->fd);
}

void rtl_event(struct rtl_events *e, uint64_t id, int64_t result, int64_t kind)
{
	e->next[RTL_ID] = (int64_t)id;
	e->next[RTL_RESULT] = result;
	e->next[RTL_KIND] = kind;
	e->next += RTL_EVENT_FIELDS;
	e->count++;
	e->room--;
}

void rtl_report_ended(struct rtl_ring *r, struct rtl_events *e)
{
	while (e->room && r->ended.head) {
		struct rtl_request *req = rtl_fifo_pop(&r->ended);

		rtl_over(r, req, req->result, e);
	}
	while (e->room && r->notices) {
		struct rtl_notice *notice = r->notices;

		r->notices = notice->next;
		rtl_event(e, notice->id, 0, RTL_OVER);
		free(notice);
	}
}

bool rtl_has_ended(const struct rtl_ring *r)
{
	return r->ended.head || r->notices;
}

/* The kernel's answer */

void rtl_complete(struct rtl_ring *r, struct rtl_request *req,
		  const struct rtl_completion *c, struct rtl_events *e)
{
	if (c->result > 0 && req->op->direction == RTL_OUT)
		r->stats.bytes_sent += (uint64_t)c->result;
	else if (c->result > 0 && req->op->direction == RTL_IN)
		r->stats.bytes_received += (uint64_t)c->result;
	req->op->complete(r, req, c, e);
}

void rtl_discard(const struct rtl_request *req, int result)
{
	if (req->op->discard)
		req->op->discard(req, result);
}

/* What a request that was cancelled answers, if it did nothing. */
bool rtl_is_interruption(int result)
{
	return result == -ECANCELED || result == -EINTR;
}

/* Cancelled, or at its deadline: a try that begins past it is interrupted. */
bool rtl_is_cut_off(const struct rtl_request *req, int result)
{
	if (req->cancelling)
		return rtl_is_interruption(result) || rtl_is_passing(result);
	return !req->parted && (result == -ECANCELED ||
				(result == -EINTR && rtl_is_past(req)));
}

static bool try_again(struct rtl_ring *r, struct rtl_request *req, int result)
{
	bool is_dry = result == -ENOBUFS && req->op->uses_pool;
	bool was_parted = req->parted && rtl_is_interruption(result);

	if (rtl_is_cut_off(req, result) ||
	    !(was_parted || rtl_is_passing(result)) ||
	    (!is_dry && !was_parted && ++req->tries > RTL_MAX_TRIES))
		return false;
	r->stats.retries++;
	if (is_dry) {
		rtl_uncancel(req);
		req->state = RTL_WAITING_FOR_BUFFER;
		rtl_fifo_push(&r->waiting, req);
	} else {
		rtl_queue(r, req);
	}
	return true;
}

/* For operations that are over when the kernel has done something. */
void rtl_request_complete(struct rtl_ring *r, struct rtl_request *req,
			  const struct rtl_completion *c, struct rtl_events *e)
{
	int result = c->result;

	if (result > 0)
		req->tries = 0;
	if (result > 0 && c->buffer != RTL_NO_BUFFER)
		rtl_event(e, req->id, result, c->buffer);
	if (c->more || try_again(r, req, result))
		return;
	if (rtl_is_cut_off(req, result))
		result = -ECANCELED;
	rtl_over(r, req, result, e);
}

/* Cancelling */

void rtl_want_cancel(struct rtl_ring *r, struct rtl_request *req)
{
	if (req->cancel_link)
		return;
	req->cancel_next = r->cancels;
	req->cancel_link = &r->cancels;
	if (req->cancel_next)
		req->cancel_next->cancel_link = &req->cancel_next;
	r->cancels = req;
}

void rtl_uncancel(struct rtl_request *req)
{
	if (!req->cancel_link)
		return;
	*req->cancel_link = req->cancel_next;
	if (req->cancel_next)
		req->cancel_next->cancel_link = req->cancel_link;
	req->cancel_link = NULL;
}

void rtl_request_cancel(struct rtl_ring *r, struct rtl_request *req)
{
	switch (req->state) {
	case RTL_QUEUED:
	case RTL_WAITING_FOR_BUFFER:
		rtl_unqueue(r, req);
		rtl_end(r, req, -ECANCELED);
		break;
	case RTL_IN_FLIGHT:
		rtl_want_cancel(r, req);
		break;
	case RTL_PARKED:
	case RTL_ENDED:
		break;
	}
}

int rtl_cancel(struct rtl_ring *r, uint64_t id)
{
	struct rtl_request *req = rtl_table_find(r, id);

	if (!req)
		return -ENOENT;
	if (req->cancelling || req->state == RTL_ENDED)
		return 0;
	if (req->op->cancel) {
		req->op->cancel(r, req);
		return 0;
	}
	req->cancelling = true;
	rtl_request_cancel(r, req);
	return 0;
}
