/* SPDX-License-Identifier: MIT */
/*
 * A try that begins past the request's deadline may be interrupted each time:
 * that is its end, and no reason to try again.
 */
#include <assert.h>
#include <errno.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "internal.h"

static int64_t events[16 * RTL_EVENT_FIELDS];

/* What the kernel answers to the try that would be next; the events of that. */
static unsigned int answer(struct rtl_ring *r, int result)
{
	struct rtl_completion c = { .result = result, .buffer = -1 };
	struct rtl_events e = { .next = events, .room = 16 };
	struct rtl_request *req = rtl_unqueue_first(r);

	req->state = RTL_IN_FLIGHT;
	rtl_complete(r, req, &c, &e);
	return e.count;
}

int main(void)
{
	int sockets[2], wakeup = eventfd(0, EFD_NONBLOCK);
	struct rtl_ring *r;

	assert(!socketpair(AF_UNIX, SOCK_STREAM, 0, sockets));
	assert(!rtl_open(&r, wakeup, 8, 32, 1, 4096, RTL_DEFERRED));

	assert(!rtl_send(r, 1, sockets[0], "late", 4, 0));
	assert(answer(r, -EINTR) == 1);
	assert(events[RTL_RESULT] == -ECANCELED);

	assert(!rtl_send(r, 2, sockets[0], "late", 4, RTL_NO_DEADLINE));
	assert(answer(r, -EINTR) == 0);
	assert(answer(r, 1) == 0);
	assert(answer(r, 3) == 1);
	assert(events[RTL_RESULT] == 4);

	assert(!rtl_free(&r));
	return 0;
}
