/* SPDX-License-Identifier: MIT */
/* One send from the caller's memory. What a stream sends has an outbox. */
#include <poll.h>
#include <sys/socket.h>

#include "internal.h"

static void send_prepare(const struct rtl_ring *r,
			 const struct rtl_request *req,
			 struct io_uring_sqe *sqe)
{
	(void)r;
	io_uring_prep_send(sqe, req->fd, req->u.buf.base, req->u.buf.len,
			   MSG_NOSIGNAL | MSG_WAITALL);
}

/* All of it, as MSG_WAITALL means there: what is sent already is noted. */
static int send_attempt(struct rtl_ring *r, struct rtl_request *req,
			struct rtl_completion *c)
{
	unsigned int left = req->u.buf.len - req->u.buf.done;
	int sent = rtl_result(send(req->fd,
				   (char *)req->u.buf.base + req->u.buf.done,
				   left, MSG_NOSIGNAL | MSG_DONTWAIT));

	(void)r;
	(void)c;
	if (sent < 0)
		return sent;
	req->u.buf.done += (unsigned int)sent;
	return req->u.buf.done < req->u.buf.len ? -EAGAIN :
						  (int)req->u.buf.done;
}

static int send_done(const struct rtl_request *req)
{
	return (int)req->u.buf.done;
}

const struct rtl_operation rtl_send_operation = {
	.kernel_opcode = IORING_OP_SEND,
	.awaits = POLLOUT,
	.direction = RTL_OUT,
	.prepare = send_prepare,
	.attempt = send_attempt,
	.complete = rtl_request_complete,
	.done = send_done,
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
