/* SPDX-License-Identifier: MIT */
/*
 * From request to SQE.
 *
 * A request waits in a FIFO and gets its SQE only when rtl_submit() finds
 * room. From the moment the SQE is published it counts as the kernel's, even
 * if io_uring_enter(2) then fails: the SQE stays in the ring and goes with
 * the next call.
 */
#include <errno.h>

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

void rtl_fifo_remove(struct rtl_fifo *f, struct rtl_request *req)
{
	struct rtl_request **link = &f->head;

	while (*link != req)
		link = &(*link)->next;
	*link = req->next;
	if (f->tail == &req->next)
		f->tail = link;
}

void rtl_queue(struct rtl_ring *r, struct rtl_request *req)
{
	req->state = RTL_QUEUED;
	rtl_fifo_push(&r->queued, req);
}

/* The pool had no buffer for what the request could have received. */
void rtl_wait_for_buffer(struct rtl_ring *r, struct rtl_request *req)
{
	req->state = RTL_WAITING_FOR_BUFFER;
	rtl_fifo_push(&r->waiting, req);
}

/* The request is over without the kernel, or the kernel is done with it. */
void rtl_end(struct rtl_ring *r, struct rtl_request *req, int result)
{
	req->state = RTL_ENDED;
	req->result = result;
	rtl_fifo_push(&r->ended, req);
}

void rtl_set_deadline(struct rtl_request *req, int64_t deadline_ns)
{
	req->timed = deadline_ns >= 0;
	req->deadline.tv_sec = deadline_ns / RTL_NS_PER_SECOND;
	req->deadline.tv_nsec = deadline_ns % RTL_NS_PER_SECOND;
}

static int add(struct rtl_ring *r, uint64_t id, enum rtl_opcode opcode, int fd,
	       struct rtl_request **out)
{
	int error = rtl_table_add(r, id, opcode, fd, out);

	if (!error)
		rtl_queue(r, *out);
	return error;
}

int rtl_recv_into(struct rtl_ring *r, uint64_t id, int fd, void *buf,
		  unsigned int len)
{
	struct rtl_request *req;
	int error = add(r, id, RTL_RECV_INTO, fd, &req);

	if (!error) {
		req->u.buf.base = buf;
		req->u.buf.len = len;
	}
	return error;
}

int rtl_recv(struct rtl_ring *r, uint64_t id, int fd, unsigned int len)
{
	struct rtl_request *req;
	int error = add(r, id, RTL_RECV, fd, &req);

	if (!error)
		req->u.buf.len = len;
	return error;
}

int rtl_send(struct rtl_ring *r, uint64_t id, int fd, const void *buf,
	     unsigned int len, int64_t deadline_ns)
{
	struct rtl_request *req;
	int error = add(r, id, RTL_SEND, fd, &req);

	if (!error) {
		req->u.buf.base = (void *)(uintptr_t)buf;
		req->u.buf.len = len;
		rtl_set_deadline(req, deadline_ns);
	}
	return error;
}

int rtl_accept(struct rtl_ring *r, uint64_t id, int fd)
{
	struct rtl_request *req;

	return add(r, id, RTL_ACCEPT, fd, &req);
}

int rtl_connect(struct rtl_ring *r, uint64_t id, int fd, const void *address,
		unsigned int len)
{
	struct rtl_request *req;
	int error = add(r, id, RTL_CONNECT, fd, &req);

	if (!error) {
		req->u.buf.base = (void *)(uintptr_t)address;
		req->u.buf.len = len;
	}
	return error;
}

int rtl_poll(struct rtl_ring *r, uint64_t id, int fd, unsigned int mask,
	     int64_t deadline_ns)
{
	struct rtl_request *req;
	int error = add(r, id, RTL_POLL, fd, &req);

	if (!error) {
		req->u.mask = mask;
		rtl_set_deadline(req, deadline_ns);
	}
	return error;
}

int rtl_recv_multishot(struct rtl_ring *r, uint64_t id, int fd)
{
	struct rtl_request *req;

	return add(r, id, RTL_RECV_MULTISHOT, fd, &req);
}

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

/* Ask for the end of a request; it still ends by a completion of its own. */
int rtl_cancel(struct rtl_ring *r, uint64_t id)
{
	struct rtl_request *req = rtl_table_find(r, id);

	if (!req)
		return -ENOENT;
	if (req->opcode == RTL_CLOSE) {
		rtl_close_cancel(r, req);
		return 0;
	}
	if (req->cancelling)
		return 0;
	req->cancelling = true;
	if (req->opcode == RTL_OUTBOX && req->state != RTL_IN_FLIGHT) {
		rtl_outbox_cancel(r, req);
		return 0;
	}
	switch (req->state) {
	case RTL_QUEUED:
	case RTL_WAITING_FOR_BUFFER:
		rtl_fifo_remove(req->state == RTL_WAITING_FOR_BUFFER ? &r->waiting : &r->queued, req);
		rtl_end(r, req, -ECANCELED);
		rtl_close_fd_event(r, req->fd);
		break;
	case RTL_IN_FLIGHT:
		rtl_want_cancel(r, req);
		break;
	case RTL_PARKED:
	case RTL_ENDED:
		break;
	}
	return 0;
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

static void prepare(struct rtl_ring *r, struct rtl_request *req,
		    struct io_uring_sqe *sqe)
{
	switch (req->opcode) {
	case RTL_RECV:
		io_uring_prep_recv(sqe, req->fd, NULL, req->u.buf.len, 0);
		sqe->flags |= IOSQE_BUFFER_SELECT;
		sqe->buf_group = 0;
		break;
	case RTL_RECV_INTO:
		io_uring_prep_recv(sqe, req->fd, req->u.buf.base, req->u.buf.len, 0);
		break;
	case RTL_SEND:
		io_uring_prep_send(sqe, req->fd, req->u.buf.base, req->u.buf.len,
				   MSG_NOSIGNAL | MSG_WAITALL);
		break;
	case RTL_ACCEPT:
		io_uring_prep_accept(sqe, req->fd, NULL, NULL, SOCK_CLOEXEC);
		break;
	case RTL_CONNECT:
		io_uring_prep_connect(sqe, req->fd, req->u.buf.base, req->u.buf.len);
		break;
	case RTL_POLL:
		io_uring_prep_poll_add(sqe, req->fd, req->u.mask);
		break;
	case RTL_CLOSE:
		io_uring_prep_recv(sqe, req->fd, r->trash, RTL_TRASH_SIZE,
				   MSG_TRUNC);
		break;
	case RTL_RECV_MULTISHOT:
		io_uring_prep_recv_multishot(sqe, req->fd, NULL, 0, 0);
		sqe->flags |= IOSQE_BUFFER_SELECT;
		sqe->buf_group = 0;
		break;
	case RTL_OUTBOX:
		rtl_outbox_prepare(req, sqe);
		break;
	}
	io_uring_sqe_set_data64(sqe, req->id);
	req->state = RTL_IN_FLIGHT;
}

/* When the kernel is to break it off; NULL: never. */
static struct __kernel_timespec *limit_of(const struct rtl_ring *r,
					  struct rtl_request *req)
{
	if (req->opcode == RTL_CLOSE)
		return rtl_close_limit(r, req);
	return req->timed ? &req->deadline : NULL;
}

static void prepare_limit(struct rtl_ring *r, const struct rtl_request *req,
			  struct __kernel_timespec *limit)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&r->uring);

	io_uring_prep_link_timeout(sqe, limit, IORING_TIMEOUT_ABS);
	io_uring_sqe_set_data64(sqe, req->id | RTL_CONTROL);
	r->stats.control_in_flight++;
}

/* Fill SQEs while there is room. */
static void stage(struct rtl_ring *r)
{
	unsigned int room = io_uring_sq_space_left(&r->uring);

	while (r->queued.head) {
		struct rtl_request *req = r->queued.head;
		struct __kernel_timespec *limit = limit_of(r, req);
		struct io_uring_sqe *sqe;

		if (room < (limit ? 2u : 1u))
			return;
		room -= limit ? 2u : 1u;
		rtl_fifo_pop(&r->queued);
		sqe = io_uring_get_sqe(&r->uring);
		prepare(r, req, sqe);
		if (limit) {
			sqe->flags |= IOSQE_IO_LINK;
			prepare_limit(r, req, limit);
		}
	}
	while (r->cancels && room) {
		struct rtl_request *req = r->cancels;
		struct io_uring_sqe *sqe = io_uring_get_sqe(&r->uring);

		rtl_uncancel(req);
		io_uring_prep_cancel64(sqe, req->id, 0);
		io_uring_sqe_set_data64(sqe, req->id | RTL_CONTROL);
		r->stats.control_in_flight++;
		room--;
	}
}

/*
 * If all that found the pool dry went on at once, most would do so in vain,
 * again and again. So no more do than can count on a buffer.
 */
static void queue_some_waiting(struct rtl_ring *r)
{
	for (uint64_t i = 0; i < (r->stats.buffers + 1) / 2 && r->waiting.head; i++)
		rtl_queue(r, rtl_fifo_pop(&r->waiting));
}

/*
 * Hand everything over. Returns how many SQEs that were when the kernel has it
 * all; -EAGAIN, -EBUSY or -ENOMEM when completions must be reaped first (call
 * again after that).
 */
int rtl_submit(struct rtl_ring *r)
{
	int total = 0;

	rtl_pool_take_back(r);
	queue_some_waiting(r);
	for (;;) {
		int ret;

		stage(r);
		if (!io_uring_sq_ready(&r->uring))
			return total;
		ret = io_uring_submit(&r->uring);
		if (ret == -EINTR)
			continue;
		if (ret < 0)
			return ret;
		r->stats.submitted += (uint64_t)ret;
		total += ret;
		if (!ret)
			return -EAGAIN;
	}
}
