/* SPDX-License-Identifier: MIT */
/* A connection to an address, which is the caller's memory until it is over. */
#include "internal.h"

static void connect_prepare(const struct rtl_ring *r,
			    const struct rtl_request *req,
			    struct io_uring_sqe *sqe)
{
	(void)r;
	io_uring_prep_connect(sqe, req->fd, req->u.buf.base, req->u.buf.len);
}

const struct rtl_operation rtl_connect_operation = {
	.kernel_opcode = IORING_OP_CONNECT,
	.life = RTL_ENDS_AT_CLOSE,
	.prepare = connect_prepare,
	.complete = rtl_request_complete,
};

int rtl_connect(struct rtl_ring *r, uint64_t id, int fd, const void *address,
		unsigned int len)
{
	struct rtl_request *req;
	int error = rtl_request_add(r, id, &rtl_connect_operation, fd, &req);

	if (!error) {
		req->u.buf.base = (void *)(uintptr_t)address;
		req->u.buf.len = len;
	}
	return error;
}
