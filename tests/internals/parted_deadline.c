/* SPDX-License-Identifier: MIT */
/*
 * The kernel takes a request and not the deadline linked to it, which is then
 * answered by -EINVAL. That is no reason to end before the deadline.
 */
#include <assert.h>
#include <errno.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "internal.h"

#define ID 1u
#define CONTROL (UINT64_C(1) << 63)

static void submit_parted(struct rtl_ring *r)
{
	struct rtl_request *req = rtl_unqueue_first(r);
	struct io_uring_sqe *sqe = io_uring_get_sqe(&r->uring);

	req->op->prepare(r, req, sqe);
	io_uring_sqe_set_data64(sqe, ID);
	req->state = RTL_IN_FLIGHT;
	assert(io_uring_submit(&r->uring) == 1);

	sqe = io_uring_get_sqe(&r->uring);
	req->at.uring.limit = rtl_timespec(3600 * RTL_NS_PER_SECOND);
	io_uring_prep_link_timeout(sqe, &req->at.uring.limit, 0);
	io_uring_sqe_set_data64(sqe, ID | CONTROL);
	r->stats.control_in_flight++;
	assert(io_uring_submit(&r->uring) == 1);
}

int main(void)
{
	int64_t events[16 * RTL_EVENT_FIELDS];
	int sockets[2], wakeup = eventfd(0, EFD_NONBLOCK);
	struct rtl_counters counters;
	struct rtl_ring *r;

	assert(!socketpair(AF_UNIX, SOCK_STREAM, 0, sockets));
	assert(!rtl_open(&r, wakeup, 8, 32, 1, 4096, RTL_DEFERRED));
	assert(!rtl_poll(r, ID, sockets[0], 0,
			 rtl_now_ns() + 3600 * RTL_NS_PER_SECOND));
	submit_parted(r);
	do {
		assert(!rtl_reap(r, events, 16));
		assert(rtl_submit(r) >= 0);
		rtl_counters(r, &counters);
	} while (!counters.retries || counters.control_in_flight != 1);
	assert(!rtl_cancel(r, ID));
	while (rtl_reap(r, events, 16) != 1)
		assert(!rtl_wait(r, RTL_NS_PER_SECOND));
	assert(events[RTL_RESULT] == -ECANCELED);
	while (rtl_free(&r))
		rtl_reap(r, events, 16);
	return 0;
}
