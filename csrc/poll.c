/* SPDX-License-Identifier: MIT */
/* Waiting for a descriptor, or with an empty mask just for the deadline. */
#include <poll.h>

#include "internal.h"

static void poll_prepare(const struct rtl_ring *r,
			 const struct rtl_request *req,
			 struct io_uring_sqe *sqe)
{
	(void)r;
	io_uring_prep_poll_add(sqe, req->fd, req->awaits);
}

static int poll_attempt(struct rtl_ring *r, struct rtl_request *req,
			struct rtl_completion *c)
{
	struct pollfd one = { .fd = req->fd, .events = (short)req->awaits };

	(void)r;
	(void)c;
	if (!req->awaits)
		return -EAGAIN;
	if (poll(&one, 1, 0) < 0)
		return -errno;
	if (one.revents & POLLNVAL)
		return -EBADF;
	return one.revents ? one.revents : -EAGAIN;
}

const struct rtl_operation rtl_poll_operation = {
	.kernel_opcode = IORING_OP_POLL_ADD,
	.life = RTL_ENDS_AT_CLOSE,
	.prepare = poll_prepare,
	.attempt = poll_attempt,
	.complete = rtl_request_complete,
};

int rtl_poll(struct rtl_ring *r, uint64_t id, int fd, unsigned int mask,
	     int64_t deadline_ns)
{
	struct rtl_request *req;
	int error = rtl_request_add(r, id, &rtl_poll_operation, fd, &req);

	if (!error) {
		req->awaits = mask;
		req->deadline_ns = deadline_ns;
	}
	return error;
}
