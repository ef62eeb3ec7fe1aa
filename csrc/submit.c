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

void rtl_fifo_push(struct rtl_fifo *f, struct rtl_request *q)
{
	q->next = NULL;
	*f->tail = q;
	f->tail = &q->next;
}

struct rtl_request *rtl_fifo_pop(struct rtl_fifo *f)
{
	struct rtl_request *q = f->head;

	if (!q)
		return NULL;
	f->head = q->next;
	if (!f->head)
		f->tail = &f->head;
	return q;
}

void rtl_fifo_remove(struct rtl_fifo *f, struct rtl_request *q)
{
	struct rtl_request **link = &f->head;

	while (*link != q)
		link = &(*link)->next;
	*link = q->next;
	if (f->tail == &q->next)
		f->tail = link;
}

void rtl_queue(struct rtl_ring *r, struct rtl_request *q)
{
	q->state = RTL_QUEUED;
	rtl_fifo_push(&r->queued, q);
}

/* The pool had no buffer for what the request could have received. */
void rtl_wait_for_buffer(struct rtl_ring *r, struct rtl_request *q)
{
	q->state = RTL_WAITING_FOR_BUFFER;
	rtl_fifo_push(&r->waiting, q);
}

/* The request is over without the kernel, or the kernel is done with it. */
void rtl_end(struct rtl_ring *r, struct rtl_request *q, int result)
{
	q->state = RTL_ENDED;
	q->result = result;
	rtl_fifo_push(&r->ended, q);
}

void rtl_set_deadline(struct rtl_request *q, int64_t deadline_ns)
{
	q->timed = deadline_ns >= 0;
	q->deadline.tv_sec = deadline_ns / RTL_NS_PER_SECOND;
	q->deadline.tv_nsec = deadline_ns % RTL_NS_PER_SECOND;
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
	struct rtl_request *q;
	int error = add(r, id, RTL_RECV_INTO, fd, &q);

	if (!error) {
		q->u.buf.base = buf;
		q->u.buf.len = len;
	}
	return error;
}

int rtl_recv(struct rtl_ring *r, uint64_t id, int fd, unsigned int len)
{
	struct rtl_request *q;
	int error = add(r, id, RTL_RECV, fd, &q);

	if (!error)
		q->u.buf.len = len;
	return error;
}

int rtl_send(struct rtl_ring *r, uint64_t id, int fd, const void *buf,
	     unsigned int len, int64_t deadline_ns)
{
	struct rtl_request *q;
	int error = add(r, id, RTL_SEND, fd, &q);

	if (!error) {
		q->u.buf.base = (void *)(uintptr_t)buf;
		q->u.buf.len = len;
		rtl_set_deadline(q, deadline_ns);
	}
	return error;
}

int rtl_accept(struct rtl_ring *r, uint64_t id, int fd)
{
	struct rtl_request *q;

	return add(r, id, RTL_ACCEPT, fd, &q);
}

int rtl_connect(struct rtl_ring *r, uint64_t id, int fd, const void *address,
		unsigned int len)
{
	struct rtl_request *q;
	int error = add(r, id, RTL_CONNECT, fd, &q);

	if (!error) {
		q->u.buf.base = (void *)(uintptr_t)address;
		q->u.buf.len = len;
	}
	return error;
}

int rtl_poll(struct rtl_ring *r, uint64_t id, int fd, unsigned int mask,
	     int64_t deadline_ns)
{
	struct rtl_request *q;
	int error = add(r, id, RTL_POLL, fd, &q);

	if (!error) {
		q->u.mask = mask;
		rtl_set_deadline(q, deadline_ns);
	}
	return error;
}

int rtl_recv_multishot(struct rtl_ring *r, uint64_t id, int fd)
{
	struct rtl_request *q;

	return add(r, id, RTL_RECV_MULTISHOT, fd, &q);
}

void rtl_want_cancel(struct rtl_ring *r, struct rtl_request *q)
{
	if (q->cancel_link)
		return;
	q->cancel_next = r->cancels;
	q->cancel_link = &r->cancels;
	if (q->cancel_next)
		q->cancel_next->cancel_link = &q->cancel_next;
	r->cancels = q;
}

/* Ask for the end of a request; it still ends by a completion of its own. */
int rtl_cancel(struct rtl_ring *r, uint64_t id)
{
	struct rtl_request *q = rtl_table_find(r, id);

	if (!q)
		return -ENOENT;
	if (q->opcode == RTL_CLOSE) {
		rtl_close_cancel(r, q);
		return 0;
	}
	if (q->cancelling)
		return 0;
	q->cancelling = true;
	if (q->opcode == RTL_OUTBOX && q->state != RTL_IN_FLIGHT) {
		rtl_outbox_cancel(r, q);
		return 0;
	}
	switch (q->state) {
	case RTL_QUEUED:
	case RTL_WAITING_FOR_BUFFER:
		rtl_fifo_remove(q->state == RTL_WAITING_FOR_BUFFER ? &r->waiting : &r->queued, q);
		rtl_end(r, q, -ECANCELED);
		rtl_close_fd_event(r, q->fd);
		break;
	case RTL_IN_FLIGHT:
		rtl_want_cancel(r, q);
		break;
	case RTL_PARKED:
	case RTL_ENDED:
		break;
	}
	return 0;
}

void rtl_uncancel(struct rtl_request *q)
{
	if (!q->cancel_link)
		return;
	*q->cancel_link = q->cancel_next;
	if (q->cancel_next)
		q->cancel_next->cancel_link = q->cancel_link;
	q->cancel_link = NULL;
}

static void prepare(struct rtl_ring *r, struct rtl_request *q,
		    struct io_uring_sqe *sqe)
{
	switch (q->opcode) {
	case RTL_RECV:
		io_uring_prep_recv(sqe, q->fd, NULL, q->u.buf.len, 0);
		sqe->flags |= IOSQE_BUFFER_SELECT;
		sqe->buf_group = 0;
		break;
	case RTL_RECV_INTO:
		io_uring_prep_recv(sqe, q->fd, q->u.buf.base, q->u.buf.len, 0);
		break;
	case RTL_SEND:
		io_uring_prep_send(sqe, q->fd, q->u.buf.base, q->u.buf.len,
				   MSG_NOSIGNAL | MSG_WAITALL);
		break;
	case RTL_ACCEPT:
		io_uring_prep_accept(sqe, q->fd, NULL, NULL, SOCK_CLOEXEC);
		break;
	case RTL_CONNECT:
		io_uring_prep_connect(sqe, q->fd, q->u.buf.base, q->u.buf.len);
		break;
	case RTL_POLL:
		io_uring_prep_poll_add(sqe, q->fd, q->u.mask);
		break;
	case RTL_CLOSE:
		io_uring_prep_recv(sqe, q->fd, r->trash, RTL_TRASH_SIZE,
				   MSG_TRUNC);
		break;
	case RTL_RECV_MULTISHOT:
		io_uring_prep_recv_multishot(sqe, q->fd, NULL, 0, 0);
		sqe->flags |= IOSQE_BUFFER_SELECT;
		sqe->buf_group = 0;
		break;
	case RTL_OUTBOX:
		rtl_outbox_prepare(q, sqe);
		break;
	}
	io_uring_sqe_set_data64(sqe, q->id);
	q->state = RTL_IN_FLIGHT;
}

/* When the kernel is to break it off; NULL: never. */
static struct __kernel_timespec *limit_of(const struct rtl_ring *r,
					  struct rtl_request *q)
{
	if (q->opcode == RTL_CLOSE)
		return rtl_close_limit(r, q);
	return q->timed ? &q->deadline : NULL;
}

static void prepare_limit(struct rtl_ring *r, const struct rtl_request *q,
			  struct __kernel_timespec *limit)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&r->uring);

	io_uring_prep_link_timeout(sqe, limit, IORING_TIMEOUT_ABS);
	io_uring_sqe_set_data64(sqe, q->id | RTL_CONTROL);
	r->n.control_in_flight++;
}

/* Fill SQEs while there is room. */
static void stage(struct rtl_ring *r)
{
	unsigned int room = io_uring_sq_space_left(&r->uring);

	while (r->queued.head) {
		struct rtl_request *q = r->queued.head;
		struct __kernel_timespec *limit = limit_of(r, q);
		struct io_uring_sqe *sqe;

		if (room < (limit ? 2u : 1u))
			return;
		room -= limit ? 2u : 1u;
		rtl_fifo_pop(&r->queued);
		sqe = io_uring_get_sqe(&r->uring);
		prepare(r, q, sqe);
		if (limit) {
			sqe->flags |= IOSQE_IO_LINK;
			prepare_limit(r, q, limit);
		}
	}
	while (r->cancels && room) {
		struct rtl_request *q = r->cancels;
		struct io_uring_sqe *sqe = io_uring_get_sqe(&r->uring);

		rtl_uncancel(q);
		io_uring_prep_cancel64(sqe, q->id, 0);
		io_uring_sqe_set_data64(sqe, q->id | RTL_CONTROL);
		r->n.control_in_flight++;
		room--;
	}
}

/*
 * If all that found the pool dry went on at once, most would do so in vain,
 * again and again. So no more do than can count on a buffer.
 */
static void queue_some_waiting(struct rtl_ring *r)
{
	for (uint64_t i = 0; i < (r->n.buffers + 1) / 2 && r->waiting.head; i++)
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
		r->n.submitted += (uint64_t)ret;
		total += ret;
		if (!ret)
			return -EAGAIN;
	}
}
