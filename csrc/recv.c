/* SPDX-License-Identifier: MIT */
/* Receiving: into the pool, once or until cancelled; or into memory given. */
#include <errno.h>
#include <poll.h>
#include <sys/socket.h>

#include "internal.h"

static void prepare_from_pool(const struct rtl_request *req,
			      struct io_uring_sqe *sqe)
{
	io_uring_prep_recv(sqe, req->fd, NULL, req->u.buf.len, 0);
	sqe->flags |= IOSQE_BUFFER_SELECT;
	sqe->buf_group = 0;
}

/* Into a free buffer of the pool, which is taken only for what has come. */
static int attempt_from_pool(struct rtl_ring *r, struct rtl_request *req,
			     struct rtl_completion *c)
{
	size_t len = (size_t)r->stats.buffer_size;
	int buffer = rtl_pool_take(r);
	int received;

	if (buffer == RTL_NO_BUFFER)
		return -ENOBUFS;
	received = rtl_result(recv(req->fd, r->pool + (size_t)buffer * len,
				   req->u.buf.len && req->u.buf.len < len ?
				   req->u.buf.len : len, MSG_DONTWAIT));
	if (received > 0)
		c->buffer = buffer;
	else
		rtl_pool_put(r, (uint16_t)buffer);
	return received;
}

static void recv_prepare(const struct rtl_ring *r,
			 const struct rtl_request *req,
			 struct io_uring_sqe *sqe)
{
	(void)r;
	prepare_from_pool(req, sqe);
}

const struct rtl_operation rtl_recv_operation = {
	.kernel_opcode = IORING_OP_RECV,
	.awaits = POLLIN,
	.direction = RTL_IN,
	.uses_pool = true,
	.life = RTL_ENDS_AT_CLOSE,
	.prepare = recv_prepare,
	.attempt = attempt_from_pool,
	.complete = rtl_request_complete,
};

int rtl_recv(struct rtl_ring *r, uint64_t id, int fd, unsigned int len)
{
	struct rtl_request *req;
	int error = rtl_request_add(r, id, &rtl_recv_operation, fd, &req);

	if (!error)
		req->u.buf.len = len;
	return error;
}

static void recv_into_prepare(const struct rtl_ring *r,
			      const struct rtl_request *req,
			      struct io_uring_sqe *sqe)
{
	(void)r;
	io_uring_prep_recv(sqe, req->fd, req->u.buf.base, req->u.buf.len, 0);
}

static int recv_into_attempt(struct rtl_ring *r, struct rtl_request *req,
			     struct rtl_completion *c)
{
	(void)r;
	(void)c;
	return rtl_result(recv(req->fd, req->u.buf.base, req->u.buf.len,
			       MSG_DONTWAIT));
}

const struct rtl_operation rtl_recv_into_operation = {
	.kernel_opcode = IORING_OP_RECV,
	.awaits = POLLIN,
	.direction = RTL_IN,
	.life = RTL_ENDS_AT_CLOSE,
	.prepare = recv_into_prepare,
	.attempt = recv_into_attempt,
	.complete = rtl_request_complete,
};

int rtl_recv_into(struct rtl_ring *r, uint64_t id, int fd, void *buf,
		  unsigned int len)
{
	struct rtl_request *req;
	int error = rtl_request_add(r, id, &rtl_recv_into_operation, fd, &req);

	if (!error) {
		req->u.buf.base = buf;
		req->u.buf.len = len;
	}
	return error;
}

static void multishot_prepare(const struct rtl_ring *r,
			      const struct rtl_request *req,
			      struct io_uring_sqe *sqe)
{
	(void)r;
	prepare_from_pool(req, sqe);
	sqe->ioprio |= IORING_RECV_MULTISHOT;
}

static int multishot_attempt(struct rtl_ring *r, struct rtl_request *req,
			     struct rtl_completion *c)
{
	int received = attempt_from_pool(r, req, c);

	c->more = received > 0;
	return received;
}

/* The kernel may end it for reasons of its own: then it is made anew. */
static void multishot_complete(struct rtl_ring *r, struct rtl_request *req,
			       const struct rtl_completion *c,
			       struct rtl_events *e)
{
	if (c->more || c->result <= 0) {
		rtl_request_complete(r, req, c, e);
		return;
	}
	req->tries = 0;
	rtl_event(e, req->id, c->result, c->buffer);
	if (req->cancelling)
		rtl_over(r, req, -ECANCELED, e);
	else
		rtl_queue(r, req);
}

const struct rtl_operation rtl_recv_multishot_operation = {
	.kernel_opcode = IORING_OP_RECV,
	.awaits = POLLIN,
	.direction = RTL_IN,
	.uses_pool = true,
	.life = RTL_ENDS_AT_CLOSE,
	.prepare = multishot_prepare,
	.attempt = multishot_attempt,
	.complete = multishot_complete,
};

int rtl_recv_multishot(struct rtl_ring *r, uint64_t id, int fd)
{
	struct rtl_request *req;

	return rtl_request_add(r, id, &rtl_recv_multishot_operation, fd, &req);
}
