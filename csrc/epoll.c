/* SPDX-License-Identifier: MIT */
/*
 * How operations meet the kernel by epoll(7): by system calls that do not
 * block, each made when it can be expected to succeed.
 *
 *  1. A request is tried when it is submitted. If that is too early, epoll
 *     watches its descriptor, and it is tried again when that is ready. So what
 *     epoll says is a hint and nothing more: whether something can be done is
 *     for the call to say.
 *  2. All requests on a descriptor share its one registration with epoll, which
 *     is level-triggered. It stays when a request is over, because the next one
 *     most likely awaits the same, and is narrowed only when epoll reports what
 *     nobody awaits. So a connection on which requests and answers alternate
 *     needs no further epoll_ctl(2).
 *  3. The registration is removed when the last request on the descriptor is
 *     over, and before the descriptor is closed: it belongs to the open file,
 *     which may live on in another process, and then nobody could remove it
 *     any more (epoll(7)).
 *  4. What a try has answered waits in a FIFO for rtl_reap(); so do requests
 *     that rtl_reap() is to try. A send of which nobody need be told is
 *     completed at once.
 *  5. A receive takes a buffer of the pool when it is tried, and no sooner.
 *     While more than half of the pool is lent, none is tried.
 *  6. A multishot receive takes one buffer, then the others have their turn.
 *     epoll is asked once after each submit, even if much waits already: else a
 *     peer that sends without end would keep all others waiting.
 *  7. An event loop sleeps on the descriptor of epoll, which watches the
 *     eventfd as well, and a timer that goes off at the first deadline, or
 *     before. The timer is read once it was seen, and not when it is next set:
 *     until then the descriptor would stay readable, and the loop not sleep.
 *  8. Between two calls the kernel has nothing of ours. So a cancellation, or a
 *     deadline, ends a request at once.
 */
#include <errno.h>
#include <limits.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "internal.h"

#define NS_PER_MS (RTL_NS_PER_SECOND / 1000)

/* Descriptors that one epoll_wait(2) tells of. */
#define MOST_READY 128

/* Opening */

static int control(struct rtl_ring *r, int what, int fd, uint32_t events)
{
	struct epoll_event event = { .events = events, .data.fd = fd };

	return rtl_result(epoll_ctl(r->epoll.fd, what, fd, &event));
}

static void epoll_close(struct rtl_ring *r)
{
	if (r->epoll.timer >= 0)
		close(r->epoll.timer);
	if (r->epoll.fd >= 0)
		close(r->epoll.fd);
}

static int open_descriptors(struct rtl_ring *r)
{
	int error;

	r->epoll.fd = epoll_create1(EPOLL_CLOEXEC);
	if (r->epoll.fd < 0)
		return -errno;
	r->epoll.timer = timerfd_create(CLOCK_MONOTONIC,
					TFD_CLOEXEC | TFD_NONBLOCK);
	if (r->epoll.timer < 0)
		return -errno;
	error = control(r, EPOLL_CTL_ADD, r->eventfd, EPOLLIN);
	return error ? error : control(r, EPOLL_CTL_ADD, r->epoll.timer,
				       EPOLLIN);
}

static int epoll_open(struct rtl_ring *r, unsigned int sq_entries,
		      unsigned int cq_entries, enum rtl_engine engine)
{
	int error;

	(void)sq_entries;
	(void)cq_entries;
	(void)engine;
	r->epoll.fd = r->epoll.timer = -1;
	r->epoll.timer_ns = RTL_NO_DEADLINE;
	rtl_fifo_init(&r->epoll.pending);
	error = open_descriptors(r);
	if (error) {
		epoll_close(r);
		return error;
	}
	for (unsigned int i = 0; i < r->stats.buffers; i++)
		rtl_pool_put(r, (uint16_t)i);
	return 0;
}

static int epoll_knows(struct rtl_ring *r, uint8_t kernel_opcode)
{
	(void)r;
	(void)kernel_opcode;
	return 1;
}

static int epoll_sleep_fd(const struct rtl_ring *r)
{
	return r->epoll.fd;
}

static void epoll_give_back(struct rtl_ring *r)
{
	while (r->lent_len)
		rtl_pool_put(r, r->lent[--r->lent_len]);
}

/* Watching descriptors */

/*
 * -ENOENT where the descriptor is watched: somebody has closed it under its
 * requests, and so epoll has forgotten it.
 */
static int watch(struct rtl_ring *r, int fd, uint32_t events)
{
	uint32_t *watched = &r->fds[fd].watched;
	int error = -ENOENT;

	if (*watched)
		error = control(r, EPOLL_CTL_MOD, fd, events);
	if (error == -ENOENT)
		error = control(r, EPOLL_CTL_ADD, fd, events);
	if (!error)
		*watched = events;
	return error;
}

static void epoll_leave_fd(struct rtl_ring *r, int fd)
{
	if (!r->fds[fd].watched)
		return;
	r->fds[fd].watched = 0;
	control(r, EPOLL_CTL_DEL, fd, 0);
}

/* What waits for its turn in rtl_reap() */

static void set_pending(struct rtl_ring *r, struct rtl_request *req)
{
	if (req->at.epoll.pending)
		return;
	req->at.epoll.pending = true;
	rtl_fifo_push(&r->epoll.pending, req);
}

static void answer(struct rtl_ring *r, struct rtl_request *req,
		   const struct rtl_completion *c)
{
	req->at.epoll.answered = true;
	req->at.epoll.answer = *c;
	set_pending(r, req);
}

static void answer_result(struct rtl_ring *r, struct rtl_request *req,
			  int result)
{
	answer(r, req, &(struct rtl_completion){ .result = result,
						 .buffer = RTL_NO_BUFFER });
}

/* It was tried too early, or goes on: try it again when it is ready. */
static void await(struct rtl_ring *r, struct rtl_request *req)
{
	uint32_t watched = r->fds[req->fd].watched;
	int error;

	if (!(req->awaits & ~watched))
		return;
	error = watch(r, req->fd, watched | req->awaits);
	if (error)
		answer_result(r, req, error);
}

static struct rtl_completion try(struct rtl_ring *r, struct rtl_request *req)
{
	struct rtl_completion c = { .buffer = RTL_NO_BUFFER };

	c.result = req->op->attempt(r, req, &c);
	return c;
}

/* The answer is its last. Its deadline must not meet what it becomes next. */
static void finish(struct rtl_ring *r, struct rtl_request *req,
		   const struct rtl_completion *c, struct rtl_events *e)
{
	rtl_deadline_clear(r, req);
	rtl_complete(r, req, c, e);
}

/* The answer is one of many. The next turn is that of others (rule 6). */
static void go_on(struct rtl_ring *r, struct rtl_request *req,
		  const struct rtl_completion *c, struct rtl_events *e)
{
	bool may_be_more = (uint64_t)c->result == r->stats.buffer_size;

	rtl_complete(r, req, c, e);
	if (req->cancelling)
		answer_result(r, req, -ECANCELED);
	else if (may_be_more)
		set_pending(r, req);
	else
		await(r, req);
}

static void complete(struct rtl_ring *r, struct rtl_request *req,
		     const struct rtl_completion *c, struct rtl_events *e)
{
	r->stats.completed++;
	if (c->buffer != RTL_NO_BUFFER)
		rtl_pool_lend(r, (uint16_t)c->buffer);
	if (c->more)
		go_on(r, req, c, e);
	else
		finish(r, req, c, e);
}

static void take_turn(struct rtl_ring *r, struct rtl_request *req,
		      struct rtl_events *e)
{
	struct rtl_completion c = req->at.epoll.answer;

	req->at.epoll.pending = false;
	if (!req->at.epoll.answered)
		c = try(r, req);
	req->at.epoll.answered = false;
	if (c.result == -EAGAIN)
		await(r, req);
	else
		complete(r, req, &c, e);
}

static bool may_take_turn(const struct rtl_ring *r,
			  const struct rtl_request *req)
{
	return req->at.epoll.answered || !req->op->uses_pool ||
	       r->lent_len <= r->stats.buffers / 2;
}

static void epoll_complete(struct rtl_ring *r, struct rtl_events *e)
{
	while (e->room >= RTL_MOST_EVENTS && r->epoll.pending.head &&
	       may_take_turn(r, r->epoll.pending.head))
		take_turn(r, rtl_fifo_pop(&r->epoll.pending), e);
}

static bool epoll_has_completions(const struct rtl_ring *r)
{
	return r->epoll.pending.head;
}

/* There are none: submit() completes those at once. */
static void epoll_complete_silent(struct rtl_ring *r)
{
	(void)r;
}

static void epoll_discard(struct rtl_ring *r)
{
	const struct rtl_request *req;

	while ((req = rtl_fifo_pop(&r->epoll.pending)))
		if (req->at.epoll.answered)
			rtl_discard(req, req->at.epoll.answer.result);
}

/* Submitting */

static bool is_silent(const struct rtl_request *req, int result)
{
	return req->op->is_silent && req->op->is_silent(req, result);
}

static void start(struct rtl_ring *r, struct rtl_request *req)
{
	int64_t limit_ns = rtl_limit_of(r, req);
	struct rtl_events none = { 0 };
	struct rtl_completion c;

	req->state = RTL_IN_FLIGHT;
	req->at.epoll.answered = req->at.epoll.pending = false;
	req->at.epoll.timed = false;
	if (limit_ns >= 0)
		rtl_deadline_set(r, req, limit_ns);
	c = try(r, req);
	if (c.result == -EAGAIN)
		await(r, req);
	else if (is_silent(req, c.result))
		complete(r, req, &c, &none);
	else
		answer(r, req, &c);
}

static void interrupt(struct rtl_ring *r, struct rtl_request *req)
{
	if (!req->at.epoll.answered)
		answer_result(r, req, -ECANCELED);
}

static int epoll_submit(struct rtl_ring *r)
{
	int total = 0;

	r->epoll.looked = false;
	while (r->queued.head) {
		start(r, rtl_unqueue_first(r));
		total++;
	}
	while (r->cancels) {
		struct rtl_request *req = r->cancels;

		rtl_uncancel(req);
		interrupt(r, req);
	}
	r->stats.submitted += (uint64_t)total;
	return total;
}

/* Looking */

static void take_event(struct rtl_ring *r, int fd, uint32_t events)
{
	uint32_t watched = r->fds[fd].watched, awaited = 0;
	struct rtl_request *req;

	for (req = r->fds[fd].requests; req; req = req->fd_next) {
		if (req->state != RTL_IN_FLIGHT)
			continue;
		awaited |= req->awaits;
		if (req->awaits && events & (req->awaits | EPOLLERR | EPOLLHUP))
			set_pending(r, req);
	}
	if (!awaited)
		epoll_leave_fd(r, fd);
	else if (events & watched & ~awaited)
		watch(r, fd, awaited);
}

/* It has gone off. It is read as an eventfd is, and then unreadable. */
static void clear_timer(struct rtl_ring *r)
{
	eventfd_t ignored;

	eventfd_read(r->epoll.timer, &ignored);
	r->epoll.timer_ns = RTL_NO_DEADLINE;
}

/* How many descriptors are ready, or -errno. */
static int look(struct rtl_ring *r, int timeout_ms)
{
	struct epoll_event ready[MOST_READY];
	int n = rtl_result(epoll_wait(r->epoll.fd, ready, MOST_READY,
				      timeout_ms));

	for (int i = 0; i < n; i++) {
		int fd = ready[i].data.fd;

		if (fd == r->eventfd)
			r->epoll.signalled = true;
		else if (fd == r->epoll.timer)
			clear_timer(r);
		else
			take_event(r, fd, ready[i].events);
	}
	r->epoll.looked = n < MOST_READY;
	return n;
}

static bool expires(const struct rtl_request *req)
{
	return req && req->at.epoll.limit_ns <= rtl_now_ns();
}

static void expire(struct rtl_ring *r)
{
	while (expires(r->first_to_expire)) {
		struct rtl_request *req = r->first_to_expire;

		rtl_deadline_clear(r, req);
		interrupt(r, req);
	}
}

/* Ask epoll once for each submit(): what comes later is for the next turn. */
static int epoll_run(struct rtl_ring *r)
{
	int n = 0;

	expire(r);
	if (!r->epoll.looked)
		n = look(r, 0);
	return n < 0 && n != -EINTR ? n : 0;
}

static bool epoll_may_have_completions(struct rtl_ring *r)
{
	return r->epoll.pending.head || look(r, 0) > 0 ||
	       expires(r->first_to_expire);
}

/* Sleeping */

/*
 * The timer goes off at the first deadline; or before, for a request that is
 * over by now: to set it anew each time would cost more than to wake in vain.
 */
static int epoll_arm(struct rtl_ring *r)
{
	const struct rtl_request *first = r->first_to_expire;
	bool is_set = r->epoll.timer_ns >= 0;
	struct itimerspec setting = { 0 };
	int64_t ns;

	if (!first || (is_set && r->epoll.timer_ns <= first->at.epoll.limit_ns))
		return 0;
	r->epoll.timer_ns = ns = first->at.epoll.limit_ns;
	setting.it_value.tv_sec = ns / RTL_NS_PER_SECOND;
	setting.it_value.tv_nsec = ns % RTL_NS_PER_SECOND;
	setting.it_value.tv_nsec += !ns; /* zero would stop it */
	return rtl_result(timerfd_settime(r->epoll.timer, TFD_TIMER_ABSTIME,
					  &setting, NULL));
}

static void epoll_disarm(struct rtl_ring *r)
{
	(void)r;
}

static int epoll_sleep(struct rtl_ring *r, int64_t timeout_ns)
{
	int64_t ms = (timeout_ns + NS_PER_MS - 1) / NS_PER_MS;
	int n = epoll_arm(r);
	eventfd_t ignored;

	if (n < 0)
		return n;
	n = look(r, ms < INT_MAX ? (int)ms : INT_MAX);
	if (n <= 0)
		return n ? n : -ETIME;
	if (r->epoll.signalled)
		eventfd_read(r->eventfd, &ignored);
	r->epoll.signalled = false;
	return 0;
}

const struct rtl_backend rtl_epoll_backend = {
	.open = epoll_open,
	.close = epoll_close,
	.knows = epoll_knows,
	.sleep_fd = epoll_sleep_fd,
	.give_back = epoll_give_back,
	.submit = epoll_submit,
	.leave_fd = epoll_leave_fd,
	.arm = epoll_arm,
	.disarm = epoll_disarm,
	.run = epoll_run,
	.has_completions = epoll_has_completions,
	.may_have_completions = epoll_may_have_completions,
	.complete = epoll_complete,
	.complete_silent = epoll_complete_silent,
	.discard = epoll_discard,
	.wait = epoll_sleep,
};
