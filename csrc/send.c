/* SPDX-License-Identifier: MIT */
/* One send from the caller's memory. What a stream sends has an outbox. */
#include "internal.h"

static void send_prepare(const struct rtl_ring *r,
			 const struct rtl_request *req,
			 struct io_uring_sqe *sqe)
{
	(void)r;
	io_uring_prep_send(sqe, req->fd, req->u.buf.base, req->u.buf.len,
			   MSG_NOSIGNAL | MSG_WAITALL);
}

const struct rtl_operation rtl_send_operation = {
	.kernel_opcode = IORING_OP_SEND,
	.direction = RTL_OUT,
	.prepare = send_prepare,
	.complete = rtl_request_complete,
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
