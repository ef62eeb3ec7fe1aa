/* SPDX-License-Identifier: MIT */
/* One send from the caller's memory. What a stream sends has an outbox. */
#include <errno.h>
#include <poll.h>
#include <sys/socket.h>

#include "internal.h"

/*
 * What is left of it. MSG_WAITALL would have the kernel do that, but where the
 * connection breaks meanwhile, it makes the error a short result, and does not
 * tell of the reset again: input would read as ended.
 */
static void *rest(const struct rtl_request *req, unsigned int *len)
{
	*len = req->u.buf.len - req->u.buf.done;
	return (char *)req->u.buf.base + req->u.buf.done;
}

static void send_prepare(const struct rtl_ring *r,
			 const struct rtl_request *req,
			 struct io_uring_sqe *sqe)
{
	unsigned int len;
	const void *buf = rest(req, &len);

	(void)r;
	io_uring_prep_send(sqe, req->fd, buf, len, MSG_NOSIGNAL);
}

static int send_attempt(struct rtl_ring *r, struct rtl_request *req,
			struct rtl_completion *c)
{
	unsigned int len;
	const void *buf = rest(req, &len);

	(void)r;
	(void)c;
	return rtl_result(send(req->fd, buf, len, MSG_NOSIGNAL | MSG_DONTWAIT));
}

/* What was sent counts if it was cut off. A FIN of ours, -EPIPE, may do that. */
static void send_complete(struct rtl_ring *r, struct rtl_request *req,
			  const struct rtl_completion *c, struct rtl_events *e)
{
	struct rtl_completion all = *c;

	if (c->result > 0) {
		req->u.buf.done += (unsigned int)c->result;
		if (req->u.buf.done < req->u.buf.len && !req->cancelling &&
		    !rtl_is_past(req)) {
			req->tries = 0;
			rtl_queue(r, req);
			return;
		}
	}
	if (c->result > 0 || (req->u.buf.done &&
			      ((req->cancelling && c->result == -EPIPE) ||
			       rtl_is_cut_off(req, c->result))))
		all.result = (int)req->u.buf.done;
	rtl_request_complete(r, req, &all, e);
}

static void send_cancel(struct rtl_ring *r, struct rtl_request *req)
{
	req->cancelling = true;
	if (req->state == RTL_QUEUED && req->u.buf.done) {
		rtl_unqueue(r, req);
		rtl_end(r, req, (int)req->u.buf.done);
		return;
	}
	rtl_request_cancel(r, req);
}

const struct rtl_operation rtl_send_operation = {
	.kernel_opcode = IORING_OP_SEND,
	.awaits = POLLOUT,
	.direction = RTL_OUT,
	.prepare = send_prepare,
	.attempt = send_attempt,
	.complete = send_complete,
	.cancel = send_cancel,
};

int rtl_send(struct rtl_ring *r, uint64_t id, int fd, const void *buf,
	     unsigned int len, int64_t deadline_ns)
{
	struct rtl_request *req;
	int error = rtl_request_add(r, id, &rtl_send_operation, fd, &req);

	if (!error) {
		req->u.buf.base = (void *)(uintptr_t)buf;
		req->u.buf.len = len;
		req->deadline_ns = deadline_ns;
	}
	return error;
}
