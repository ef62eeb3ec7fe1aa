/* SPDX-License-Identifier: MIT */
/*
 * How operations meet the kernel by io_uring.
 *
 * The kernel leaves the last steps of a request, to copy the data and to write
 * the CQE, to the thread that submitted it: its "task work". With DEFER_TASKRUN
 * the thread does that when it asks for completions, for about twenty requests
 * in one call. With COOP_TASKRUN it does it in its next system call, whichever
 * that is. With both, IORING_SQ_TASKRUN is set while some waits, and nothing
 * interrupts the thread: so what follows is right for both.
 *
 * From the moment its SQE is published a request counts as the kernel's, even
 * if io_uring_enter(2) then fails: the SQE stays in the ring and goes with the
 * next call.
 */
#include <errno.h>
#include <time.h>

#include "internal.h"

/*
 * user_data of a control request, which acts upon another: a cancellation, a
 * deadline. Ids are smaller.
 */
#define CONTROL (UINT64_C(1) << 63)

/* Opening */

/*
 * SINGLE_ISSUER: one thread submits. TASKRUN_FLAG: IORING_SQ_TASKRUN is set
 * while task work waits. SUBMIT_ALL: one bad SQE does not hold up the rest of
 * its batch.
 */
#define SETUP_FLAGS (IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_TASKRUN_FLAG | \
		     IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CQSIZE)

static const unsigned int work_flags[] = {
	[RTL_DEFERRED] = IORING_SETUP_DEFER_TASKRUN,
	[RTL_COOPERATIVE] = IORING_SETUP_COOP_TASKRUN,
};

static int open_queues(struct rtl_ring *r, unsigned int sq_entries,
		       unsigned int cq_entries, enum rtl_engine engine)
{
	struct io_uring_params params = {
		.flags = SETUP_FLAGS | work_flags[engine],
		.cq_entries = cq_entries,
	};
	int ret;

	ret = io_uring_queue_init_params(sq_entries, &r->uring, &params);
	if (ret)
		return ret;
	r->stats.sq_entries = params.sq_entries;
	r->stats.cq_entries = params.cq_entries;
	r->stats.features = params.features;
	return 0;
}

/* The pool, as the kernel takes buffers from it */

static void provide(struct rtl_ring *r, unsigned int buffer, int offset)
{
	size_t size = (size_t)r->stats.buffer_size;

	io_uring_buf_ring_add(r->buf_ring, r->pool + buffer * size,
			      (unsigned int)size, (unsigned short)buffer,
			      io_uring_buf_ring_mask((__u32)r->stats.buffers),
			      offset);
}

static int provide_pool(struct rtl_ring *r)
{
	unsigned int buffers = (unsigned int)r->stats.buffers;
	struct io_uring_buf_reg reg = { .ring_entries = buffers };
	int ret;

	r->buf_ring = rtl_map_pages(buffers * sizeof(struct io_uring_buf));
	if (!r->buf_ring)
		return -ENOMEM;
	io_uring_buf_ring_init(r->buf_ring);
	reg.ring_addr = (unsigned long)(uintptr_t)r->buf_ring;
	ret = io_uring_register_buf_ring(&r->uring, &reg, 0);
	if (ret)
		return ret;
	for (unsigned int i = 0; i < buffers; i++)
		provide(r, i, (int)i);
	io_uring_buf_ring_advance(r->buf_ring, (int)buffers);
	return 0;
}

static void uring_close(struct rtl_ring *r)
{
	io_uring_queue_exit(&r->uring);
	rtl_unmap_pages(r->buf_ring,
			r->stats.buffers * sizeof(struct io_uring_buf));
}

/*
 * Nothing above needs io_uring_enter(2), which a filter may refuse on its own.
 * So it is called once, with nothing to do, while another engine can be had.
 */
static int try_entering(struct rtl_ring *r)
{
	return io_uring_enter((unsigned int)r->uring.ring_fd, 0, 0, 0,
			      NULL);
}

static int uring_open(struct rtl_ring *r, unsigned int sq_entries,
		      unsigned int cq_entries, enum rtl_engine engine)
{
	int ret = open_queues(r, sq_entries, cq_entries, engine);

	if (ret)
		return ret;
	ret = io_uring_register_eventfd(&r->uring, r->eventfd);
	if (!ret)
		ret = provide_pool(r);
	if (!ret)
		ret = try_entering(r);
	if (ret)
		uring_close(r);
	else
		io_uring_cq_eventfd_toggle(&r->uring, false);
	return ret;
}

static int uring_knows(struct rtl_ring *r, uint8_t kernel_opcode)
{
	struct io_uring_probe *probe = io_uring_get_probe_ring(&r->uring);
	int known;

	if (!probe)
		return -ENOMEM;
	known = io_uring_opcode_supported(probe, kernel_opcode);
	io_uring_free_probe(probe);
	return known;
}

static int uring_sleep_fd(const struct rtl_ring *r)
{
	return r->eventfd;
}

/* Nothing to do: a request of io_uring holds the file, not its number. */
static void uring_leave_fd(struct rtl_ring *r, int fd)
{
	(void)r;
	(void)fd;
}

static void uring_give_back(struct rtl_ring *r)
{
	if (!r->lent_len)
		return;
	for (unsigned int i = 0; i < r->lent_len; i++)
		provide(r, r->lent[i], (int)i);
	io_uring_buf_ring_advance(r->buf_ring, (int)r->lent_len);
	r->lent_len = 0;
}

/* Submitting */

static void prepare(struct rtl_ring *r, struct rtl_request *req, bool limited)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&r->uring);

	req->op->prepare(r, req, sqe);
	io_uring_sqe_set_data64(sqe, req->id);
	req->state = RTL_IN_FLIGHT;
	if (!limited)
		return;
	sqe->flags |= IOSQE_IO_LINK;
	sqe = io_uring_get_sqe(&r->uring);
	io_uring_prep_link_timeout(sqe, &req->at.uring.limit, 0);
	io_uring_sqe_set_data64(sqe, req->id | CONTROL);
	r->stats.control_in_flight++;
}

/*
 * How long the kernel may take for the next try of a request, if limited. Of a
 * point in time it would not know that this process may be in a time namespace.
 */
static bool is_limited(const struct rtl_ring *r, struct rtl_request *req)
{
	int64_t limit = rtl_limit_of(r, req), left;

	if (limit < 0)
		return false;
	left = limit - rtl_now_ns();
	req->at.uring.limit = rtl_timespec(left > 0 ? left : 0);
	return true;
}

/* Fill SQEs while there is room. */
static void stage(struct rtl_ring *r)
{
	unsigned int room = io_uring_sq_space_left(&r->uring);

	while (r->queued.head) {
		bool limited = is_limited(r, r->queued.head);

		if (room < (limited ? 2u : 1u))
			return;
		room -= limited ? 2u : 1u;
		prepare(r, rtl_unqueue_first(r), limited);
	}
	while (r->cancels && room) {
		struct rtl_request *req = r->cancels;
		struct io_uring_sqe *sqe = io_uring_get_sqe(&r->uring);

		rtl_uncancel(req);
		io_uring_prep_cancel64(sqe, req->id, 0);
		io_uring_sqe_set_data64(sqe, req->id | CONTROL);
		r->stats.control_in_flight++;
		room--;
	}
}

static int uring_submit(struct rtl_ring *r)
{
	int total = 0;

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

/* Completions */

static unsigned int sq_flags(const struct rtl_ring *r)
{
	return IO_URING_READ_ONCE(*r->uring.sq.kflags);
}

static bool work_waits(const struct rtl_ring *r)
{
	return sq_flags(r) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW);
}

static bool uring_has_completions(const struct rtl_ring *r)
{
	return io_uring_cq_ready(&r->uring);
}

static bool uring_may_have_completions(struct rtl_ring *r)
{
	return io_uring_cq_ready(&r->uring) || work_waits(r);
}

/*
 * The answer to a cancellation, or of a deadline (a linked timeout). -ENOENT,
 * -EALREADY: the kernel did not find the request, or could not stop it, because
 * that was on its way between two of the kernel's queues. So it is cancelled
 * again. -EINVAL: the kernel took the SQE of a request and not yet that of its
 * deadline, which then had nothing to be linked to. So the request is
 * cancelled, to be made anew with its deadline.
 */
static void complete_control(struct rtl_ring *r, uint64_t id, int result)
{
	struct rtl_request *req = rtl_table_find(r, id);

	r->stats.control_in_flight--;
	if (!req || req->state != RTL_IN_FLIGHT)
		return;
	if (result == -EINVAL)
		req->parted = true;
	if (result == -ENOENT || result == -EALREADY || result == -EINVAL)
		rtl_want_cancel(r, req);
}

/* The buffer that the kernel chose is lent, even if no event will name it. */
static int lend_buffer(struct rtl_ring *r, const struct io_uring_cqe *cqe)
{
	uint16_t buffer = (uint16_t)(cqe->flags >> IORING_CQE_BUFFER_SHIFT);

	if (!(cqe->flags & IORING_CQE_F_BUFFER))
		return RTL_NO_BUFFER;
	rtl_pool_lend(r, buffer);
	return buffer;
}

static void complete(struct rtl_ring *r, const struct io_uring_cqe *cqe,
		     struct rtl_events *e)
{
	struct rtl_completion c = {
		.result = cqe->res,
		.buffer = lend_buffer(r, cqe),
		.more = cqe->flags & IORING_CQE_F_MORE,
	};
	struct rtl_request *req;

	r->stats.completed++;
	if (cqe->user_data & CONTROL) {
		complete_control(r, cqe->user_data & ~CONTROL, cqe->res);
		return;
	}
	req = rtl_table_find(r, cqe->user_data);
	if (req)
		rtl_complete(r, req, &c, e);
}

static void uring_complete(struct rtl_ring *r, struct rtl_events *e)
{
	struct io_uring_cqe *cqe;
	unsigned int head, seen = 0;

	io_uring_for_each_cqe(&r->uring, head, cqe) {
		if (e->room < RTL_MOST_EVENTS)
			break;
		complete(r, cqe, e);
		seen++;
	}
	io_uring_cq_advance(&r->uring, seen);
}

/* Complete from the first on, and stop where somebody has to be told. */
static void uring_complete_silent(struct rtl_ring *r)
{
	struct io_uring_cqe *cqe;

	while (io_uring_cq_ready(&r->uring) &&
	       !io_uring_peek_cqe(&r->uring, &cqe)) {
		const struct rtl_request *req =
			rtl_table_find(r, cqe->user_data);
		struct rtl_events none = { 0 };

		if (!req || !req->op->is_silent ||
		    !req->op->is_silent(req, cqe->res))
			return;
		complete(r, cqe, &none);
		io_uring_cqe_seen(&r->uring, cqe);
	}
}

static void uring_discard(struct rtl_ring *r)
{
	struct io_uring_cqe *cqe;
	unsigned int head, seen = 0;

	io_uring_for_each_cqe(&r->uring, head, cqe) {
		const struct rtl_request *req =
			rtl_table_find(r, cqe->user_data);

		if (req)
			rtl_discard(req, cqe->res);
		seen++;
	}
	io_uring_cq_advance(&r->uring, seen);
}

/* 0, -EAGAIN if the kernel could not run it now, or what is wrong for good. */
static int ask_for_work(struct rtl_ring *r)
{
	int ret = io_uring_get_events(&r->uring);

	if (rtl_is_shortage(ret))
		return -EAGAIN;
	return ret < 0 && ret != -EINTR ? ret : 0;
}

/*
 * IORING_SQ_TASKRUN can be stale: never loop until it clears. The kernel queues
 * work and then sets the flag. If the work is run in between, the flag stays
 * set, with nothing behind it, until more work comes.
 */
#define MAX_FRUITLESS 16u

static int uring_run(struct rtl_ring *r)
{
	int error = 0;

	for (unsigned int i = 0; i < MAX_FRUITLESS && work_waits(r); i++) {
		if (sq_flags(r) & IORING_SQ_CQ_OVERFLOW)
			r->stats.cq_overflows++;
		error = ask_for_work(r);
		if (error || io_uring_cq_ready(&r->uring))
			break;
	}
	return error;
}

/* Sleeping */

/*
 * From now on completions signal the eventfd. Work that waited before does not:
 * so it is run here, and the caller looks whether it has completed anything.
 *
 * The kernel announces work, and then reads whether it should signal. This
 * thread writes that it should, and then reads whether work was announced. One
 * of the two is sure to see the other only if both have a full barrier between
 * their two steps. The kernel has one on x86, where its instruction is a locked
 * one. Elsewhere only its list of work is written with a barrier, so the kernel
 * is asked to look at that.
 */
static int uring_arm(struct rtl_ring *r)
{
	int error = 0;

	io_uring_cq_eventfd_toggle(&r->uring, true);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
#ifndef __x86_64__
	error = ask_for_work(r);
#endif
	return error ? error : uring_run(r);
}

static void uring_disarm(struct rtl_ring *r)
{
	io_uring_cq_eventfd_toggle(&r->uring, false);
}

/* 0, -ETIME or -EINTR. */
static int uring_wait(struct rtl_ring *r, int64_t timeout_ns)
{
	struct __kernel_timespec timeout = rtl_timespec(timeout_ns);
	struct io_uring_cqe *cqe;
	int ret = io_uring_wait_cqes(&r->uring, &cqe, 1, &timeout, NULL);

	if (!rtl_is_shortage(ret))
		return ret;
	nanosleep(&(struct timespec){ .tv_nsec = RTL_SHORTAGE_NS }, NULL);
	return 0;
}

const struct rtl_backend rtl_uring_backend = {
	.open = uring_open,
	.close = uring_close,
	.knows = uring_knows,
	.sleep_fd = uring_sleep_fd,
	.give_back = uring_give_back,
	.submit = uring_submit,
	.leave_fd = uring_leave_fd,
	.arm = uring_arm,
	.disarm = uring_disarm,
	.run = uring_run,
	.has_completions = uring_has_completions,
	.may_have_completions = uring_may_have_completions,
	.complete = uring_complete,
	.complete_silent = uring_complete_silent,
	.discard = uring_discard,
	.wait = uring_wait,
};
