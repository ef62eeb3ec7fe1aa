/* SPDX-License-Identifier: MIT */
/*
 * One connection of a listener.
 *
 * If the listener has O_NONBLOCK, some kernels answer EAGAIN to a request of
 * io_uring, which should wait all the same. The mode must stay as it is: it
 * belongs to the open file, and so to other processes, too. So the request then
 * polls the listener, and accepts when a connection is there; if another
 * process was faster, it polls again.
 *
 * The kernel tells one of those who wait of a connection, and that one may never
 * take it: another process that hangs, that stops waiting in this moment, or that
 * was killed, until the kernel has taken its ring apart. So all ask again from
 * time to time.
 */
#include <errno.h>
#include <poll.h>
#include <unistd.h>

#include "internal.h"

#define AGAIN_NS RTL_NS_PER_SECOND

static void accept_prepare(const struct rtl_ring *r,
			   const struct rtl_request *req,
			   struct io_uring_sqe *sqe)
{
	(void)r;
	if (req->u.wait_first)
		io_uring_prep_poll_add(sqe, req->fd, POLLIN);
	else
		io_uring_prep_accept(sqe, req->fd, NULL, NULL, SOCK_CLOEXEC);
}

static int accept_attempt(struct rtl_ring *r, struct rtl_request *req,
			  struct rtl_completion *c)
{
	(void)r;
	(void)c;
	return rtl_accept_now(req->fd);
}

/* epoll tells all who wait. */
static int64_t accept_limit(const struct rtl_ring *r,
			    const struct rtl_request *req)
{
	(void)req;
	return r->backend == &rtl_uring_backend ? rtl_now_ns() + AGAIN_NS :
						  RTL_NO_DEADLINE;
}

static void accept_complete(struct rtl_ring *r, struct rtl_request *req,
			    const struct rtl_completion *c,
			    struct rtl_events *e)
{
	bool interrupted = rtl_is_interruption(c->result);
	bool goes_on = req->u.wait_first ? c->result > 0 :
					   c->result == -EAGAIN;

	if (!goes_on && !interrupted) {
		rtl_request_complete(r, req, c, e);
	} else if (req->cancelling) {
		rtl_over(r, req, -ECANCELED, e);
	} else {
		req->u.wait_first = !req->u.wait_first && !interrupted;
		rtl_queue(r, req);
	}
}

static void accept_discard(const struct rtl_request *req, int result)
{
	if (!req->u.wait_first && result >= 0)
		close(result);
}

const struct rtl_operation rtl_accept_operation = {
	.kernel_opcode = IORING_OP_ACCEPT,
	.awaits = POLLIN,
	.life = RTL_ENDS_AT_CLOSE,
	.prepare = accept_prepare,
	.attempt = accept_attempt,
	.limit = accept_limit,
	.complete = accept_complete,
	.discard = accept_discard,
};

int rtl_accept(struct rtl_ring *r, uint64_t id, int fd)
{
	struct rtl_request *req;

	return rtl_request_add(r, id, &rtl_accept_operation, fd, &req);
}
