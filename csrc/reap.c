/* SPDX-License-Identifier: MIT */
/*
 * From CQE to completion.
 *
 * With DEFER_TASKRUN the kernel finishes requests only when their thread asks
 * for it, about twenty at a time: rtl_reap() asks until nothing is left.
 */
#include <errno.h>
#include <sys/eventfd.h>
#include <time.h>

#include "internal.h"

/* How long to sleep when the kernel could not take everything. */
#define SHORTAGE_NS (RTL_NS_PER_SECOND / 100)

/* How often to look before the clock is read again. */
#define POLLS_PER_CLOCK 64u

static unsigned int sq_flags(const struct rtl_ring *r)
{
	return IO_URING_READ_ONCE(*r->uring.sq.kflags);
}

static bool work_waits(const struct rtl_ring *r)
{
	return sq_flags(r) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW);
}

/* Nothing was transferred, and another time something may be. */
bool rtl_is_passing(int result)
{
	return result == -EAGAIN || result == -EINTR || result == -ENOMEM ||
	       result == -ENOBUFS;
}

unsigned int rtl_event(int64_t *event, uint64_t id, int64_t result, int64_t kind)
{
	event[RTL_ID] = (int64_t)id;
	event[RTL_RESULT] = result;
	event[RTL_KIND] = kind;
	return 1;
}

/* The kernel could not do all now, and will when something has been reaped. */
static bool is_shortage(int error)
{
	return error == -EAGAIN || error == -EBUSY || error == -ENOMEM;
}

/* A request for input whose receive has ended just goes on. */
static bool try_again(struct rtl_ring *r, struct rtl_request *req, int result)
{
	bool dry = result == -ENOBUFS &&
		   (req->opcode == RTL_RECV || req->opcode == RTL_RECV_MULTISHOT);
	bool goes_on = result > 0 && req->opcode == RTL_RECV_MULTISHOT;

	if (req->cancelling || !(goes_on || rtl_is_passing(result)) ||
	    (!dry && !goes_on && ++req->tries > RTL_MAX_TRIES))
		return false;
	if (!goes_on)
		r->stats.retries++;
	if (dry)
		rtl_wait_for_buffer(r, req);
	else
		rtl_queue(r, req);
	return true;
}

/*
 * The answer to a cancellation, or of a deadline. -ENOENT and -EALREADY: the
 * request could not be got hold of. -EINVAL: the deadline was parted from its
 * request, because the kernel took only the first of the two.
 */
static void complete_control(struct rtl_ring *r, uint64_t id, int result)
{
	struct rtl_request *req = rtl_table_find(r, id);

	r->stats.control_in_flight--;
	if (req && req->state == RTL_IN_FLIGHT &&
	    (result == -ENOENT || result == -EALREADY || result == -EINVAL))
		rtl_want_cancel(r, req);
}

/*
 * The buffer that came with a completion is the caller's for a while, and then
 * the pool's again: whether or not anybody is told of it.
 */
static bool lend_buffer(struct rtl_ring *r, const struct io_uring_cqe *cqe)
{
	if (!(cqe->flags & IORING_CQE_F_BUFFER))
		return false;
	rtl_pool_lend(r, (uint16_t)(cqe->flags >> IORING_CQE_BUFFER_SHIFT));
	return cqe->res > 0;
}

static void count_bytes(struct rtl_ring *r, const struct rtl_request *req,
			int result)
{
	if (result <= 0)
		return;
	if (req->opcode == RTL_SEND || req->opcode == RTL_OUTBOX)
		r->stats.bytes_sent += (uint64_t)result;
	else if (req->opcode == RTL_RECV || req->opcode == RTL_RECV_INTO ||
		 req->opcode == RTL_RECV_MULTISHOT)
		r->stats.bytes_received += (uint64_t)result;
}

/* Returns the number of events written, at most MOST_EVENTS. */
#define MOST_EVENTS 2u

static unsigned int complete(struct rtl_ring *r, const struct io_uring_cqe *cqe,
			     int64_t *event)
{
	struct rtl_request *req;
	int result = cqe->res;
	unsigned int n = 0;
	bool has_data;
	int fd;

	r->stats.completed++;
	if (cqe->user_data & RTL_CONTROL) {
		complete_control(r, cqe->user_data & ~RTL_CONTROL, result);
		return 0;
	}
	has_data = lend_buffer(r, cqe);
	req = rtl_table_find(r, cqe->user_data);
	if (!req)
		return 0;
	count_bytes(r, req, result);
	if (req->opcode == RTL_CLOSE) {
		rtl_close_discarded(r, req, result);
		return 0;
	}
	if (req->opcode == RTL_OUTBOX)
		return rtl_outbox_sent(r, req, result, event);
	if (result > 0)
		req->tries = 0;
	if (has_data)
		n = rtl_event(event, req->id, result,
			    cqe->flags >> IORING_CQE_BUFFER_SHIFT);
	if (cqe->flags & IORING_CQE_F_MORE || try_again(r, req, result))
		return n;
	if (req->cancelling &&
	    (rtl_is_passing(result) || (req->opcode == RTL_RECV_MULTISHOT && result > 0)))
		result = -ECANCELED;
	n += rtl_event(event + (size_t)n * RTL_EVENT_FIELDS, req->id, result, RTL_OVER);
	fd = req->fd;
	rtl_table_remove(r, req);
	rtl_close_fd_event(r, fd);
	return n;
}

static unsigned int report_ended(struct rtl_ring *r, int64_t *events,
				 unsigned int max_events)
{
	unsigned int n = 0;

	while (n < max_events && r->ended.head) {
		struct rtl_request *req = rtl_fifo_pop(&r->ended);

		n += rtl_event(events + (size_t)n * RTL_EVENT_FIELDS, req->id, req->result,
			     RTL_OVER);
		rtl_table_remove(r, req);
	}
	return n;
}

static unsigned int report_completed(struct rtl_ring *r, int64_t *events,
				     unsigned int max_events)
{
	struct io_uring_cqe *cqe;
	unsigned int head, seen = 0, n = 0;

	io_uring_for_each_cqe(&r->uring, head, cqe) {
		if (n + MOST_EVENTS > max_events)
			break;
		n += complete(r, cqe, events + (size_t)n * RTL_EVENT_FIELDS);
		seen++;
	}
	io_uring_cq_advance(&r->uring, seen);
	return n;
}

static bool has_events(const struct rtl_ring *r)
{
	return r->ended.head || r->returned || io_uring_cq_ready(&r->uring);
}

/* True when rtl_reap() may find something, without asking the kernel. */
int rtl_ready(const struct rtl_ring *r)
{
	return has_events(r) || work_waits(r);
}

/*
 * The kernel queues work and then says so, by IORING_SQ_TASKRUN. If we run the
 * work in between, the flag stays set with nothing behind it until there is
 * more. So nothing may wait for it to go away.
 */
#define MAX_FRUITLESS 16u

/* 0, -EAGAIN if the kernel could not run it now, or what is wrong for good. */
static int ask_for_work(struct rtl_ring *r)
{
	int ret = io_uring_get_events(&r->uring);

	if (is_shortage(ret))
		return -EAGAIN;
	return ret < 0 && ret != -EINTR ? ret : 0;
}

static int run_work(struct rtl_ring *r)
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

/* The descriptor to sleep on; a counter at its limit is readable already. */
static int wake(const struct rtl_ring *r)
{
	return eventfd_write(r->eventfd, 1) && errno != EAGAIN ? -errno : 0;
}

/*
 * From now on a completion makes the eventfd readable, until rtl_reap(). What
 * is there already does so at once, but for sends that nobody is told of.
 *
 * The kernel announces work and then reads whether it should signal; here it
 * is the other way round. Only with full barriers on both sides one of the two
 * is sure to see the other. The kernel's is the locked instruction on x86.
 * Elsewhere it is that of its list of work, so it is asked to look there.
 */
int rtl_arm(struct rtl_ring *r)
{
	struct io_uring_cqe *cqe;
	int error = 0;

	io_uring_cq_eventfd_toggle(&r->uring, true);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
#ifndef __x86_64__
	error = ask_for_work(r);
#endif
	if (!error)
		error = run_work(r);
	if (error && error != -EAGAIN)
		return error;
	while (io_uring_cq_ready(&r->uring) &&
	       !io_uring_peek_cqe(&r->uring, &cqe) &&
	       rtl_outbox_is_silent(r, cqe->user_data, cqe->res)) {
		int64_t event[MOST_EVENTS * RTL_EVENT_FIELDS];

		complete(r, cqe, event);
		io_uring_cqe_seen(&r->uring, cqe);
	}
	if (error || has_events(r) || r->queued.head || r->waiting.head)
		return wake(r);
	return 0;
}

/*
 * Write up to max_events events; call again until it writes none. The buffers they
 * name are the caller's until the next call: so when half of the pool is lent,
 * that is enough.
 */
int rtl_reap(struct rtl_ring *r, int64_t *events, unsigned int max_events)
{
	unsigned int n = 0;

	io_uring_cq_eventfd_toggle(&r->uring, false);
	rtl_pool_take_back(r);
	while (n + MOST_EVENTS <= max_events &&
	       r->lent_len <= r->stats.buffers / 2) {
		int error = run_work(r);

		if (error && error != -EAGAIN)
			return n ? (int)n : error;
		if (!has_events(r))
			break;
		n += report_completed(r, events + (size_t)n * RTL_EVENT_FIELDS,
				      max_events - n);
		n += report_ended(r, events + (size_t)n * RTL_EVENT_FIELDS, max_events - n);
		n += rtl_outbox_report(r, events + (size_t)n * RTL_EVENT_FIELDS,
				       max_events - n);
	}
	return (int)n;
}

/* Stay here until there may be a completion: so many nanoseconds at most. */
void rtl_busy_poll(const struct rtl_ring *r, int64_t ns)
{
	int64_t end = rtl_now_ns() + ns;

	do {
		for (unsigned int i = 0; i < POLLS_PER_CLOCK; i++)
			if (rtl_ready(r))
				return;
	} while (rtl_now_ns() < end);
}

/*
 * Submit, then sleep until there is a completion: 0, -ETIME or -EINTR. In a
 * shortage no longer than a moment: the caller reaps and comes again.
 */
int rtl_wait(struct rtl_ring *r, int64_t timeout_ns)
{
	struct __kernel_timespec ts;
	struct io_uring_cqe *cqe;
	int ret;

	ret = rtl_submit(r);
	if (ret < 0 && !is_shortage(ret))
		return ret;
	if (has_events(r) || r->waiting.head)
		return 0;
	if (ret < 0 && timeout_ns > SHORTAGE_NS)
		timeout_ns = SHORTAGE_NS;
	ts.tv_sec = timeout_ns / RTL_NS_PER_SECOND;
	ts.tv_nsec = timeout_ns % RTL_NS_PER_SECOND;
	ret = io_uring_wait_cqes(&r->uring, &cqe, 1, &ts, NULL);
	if (!is_shortage(ret))
		return ret;
	nanosleep(&(struct timespec){ .tv_nsec = SHORTAGE_NS }, NULL);
	return 0;
}
