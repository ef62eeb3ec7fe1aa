/* SPDX-License-Identifier: MIT */
/* One connection of a listener. */
#include "internal.h"

static void accept_prepare(const struct rtl_ring *r,
			   const struct rtl_request *req,
			   struct io_uring_sqe *sqe)
{
	(void)r;
	io_uring_prep_accept(sqe, req->fd, NULL, NULL, SOCK_CLOEXEC);
}

const struct rtl_operation rtl_accept_operation = {
	.kernel_opcode = IORING_OP_ACCEPT,
	.life = RTL_ENDS_AT_CLOSE,
	.prepare = accept_prepare,
	.complete = rtl_request_complete,
};

int rtl_accept(struct rtl_ring *r, uint64_t id, int fd)
{
	struct rtl_request *req;

	return rtl_request_add(r, id, &rtl_accept_operation, fd, &req);
}
