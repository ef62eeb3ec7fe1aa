/* SPDX-License-Identifier: MIT */
/*
 * A connection to an address, which is the caller's memory until it is over.
 *
 * With epoll no call may block, and connect(2), unlike recv(2) and send(2), has
 * no flag for that. So the socket is O_NONBLOCK during the call, which only
 * begins to connect, and then gets its mode back. Nobody notices: there is
 * nothing that another process could do with a socket that is not connected. A
 * second connect(2) says what became of the first.
 *
 * Nothing tells when the queue of a listener at a local socket has room again:
 * so that is tried every few milliseconds.
 */
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include "internal.h"

static void connect_prepare(const struct rtl_ring *r,
			    const struct rtl_request *req,
			    struct io_uring_sqe *sqe)
{
	(void)r;
	io_uring_prep_connect(sqe, req->fd, req->u.buf.base, req->u.buf.len);
}

#define PAUSE_NS (RTL_NS_PER_SECOND / 100)

static int connect_attempt(struct rtl_ring *r, struct rtl_request *req,
			   struct rtl_completion *c)
{
	int mode = fcntl(req->fd, F_GETFL), result;

	(void)c;
	if (mode < 0)
		return -errno;
	if (!(mode & O_NONBLOCK))
		fcntl(req->fd, F_SETFL, mode | O_NONBLOCK);
	result = rtl_result(connect(req->fd, req->u.buf.base,
				    req->u.buf.len));
	if (!(mode & O_NONBLOCK))
		fcntl(req->fd, F_SETFL, mode);
	if (result == -EINPROGRESS || result == -EALREADY)
		return -EAGAIN;
	if (result == -EAGAIN) {
		req->awaits = 0;
		rtl_deadline_set(r, req, rtl_now_ns() + PAUSE_NS);
	}
	return result;
}

/* epoll: the pause before the next try is over. */
static void connect_complete(struct rtl_ring *r, struct rtl_request *req,
			     const struct rtl_completion *c,
			     struct rtl_events *e)
{
	bool paused = !req->awaits && c->result == -ECANCELED;

	if (paused && !req->cancelling)
		rtl_queue(r, req);
	else
		rtl_request_complete(r, req, c, e);
}

const struct rtl_operation rtl_connect_operation = {
	.kernel_opcode = IORING_OP_CONNECT,
	.awaits = POLLOUT,
	.life = RTL_ENDS_AT_CLOSE,
	.prepare = connect_prepare,
	.attempt = connect_attempt,
	.complete = connect_complete,
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
