/* SPDX-License-Identifier: MIT */
/*
 * An accept that is answered by -EAGAIN, as some kernels do if the listener has
 * O_NONBLOCK: it waits for a connection and tries again, more often than a
 * passing shortage would allow; and can be cancelled while it waits. It
 * asks again after a time.
 */
#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "internal.h"

static struct sockaddr_in address = { .sin_family = AF_INET };
static int64_t events[16 * RTL_EVENT_FIELDS];

static int listen_somewhere(void)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	socklen_t len = sizeof(address);

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	assert(!bind(fd, (struct sockaddr *)&address, len));
	assert(!listen(fd, 5));
	assert(!getsockname(fd, (struct sockaddr *)&address, &len));
	return fd;
}

/* What the kernel answers to the try that would be next. */
static void answer(struct rtl_ring *r, int result)
{
	struct rtl_completion c = { .result = result, .buffer = -1 };
	struct rtl_events e = { .next = events, .room = 16 };
	struct rtl_request *req = rtl_unqueue_first(r);

	req->state = RTL_IN_FLIGHT;
	rtl_complete(r, req, &c, &e);
	assert(!e.count);
}

static int reap_one(struct rtl_ring *r)
{
	while (rtl_reap(r, events, 16) != 1)
		assert(!rtl_wait(r, 10 * RTL_NS_PER_SECOND));
	return (int)events[RTL_RESULT];
}

int main(void)
{
	int listener = listen_somewhere(), wakeup = eventfd(0, EFD_NONBLOCK);
	int client = socket(AF_INET, SOCK_STREAM, 0), accepted;
	struct rtl_ring *r;

	assert(!rtl_open(&r, wakeup, 8, 32, 1, 4096, RTL_DEFERRED));
	assert(!rtl_accept(r, 1, listener));
	for (unsigned int i = 0; i < 2 * RTL_MAX_TRIES; i++) {
		answer(r, -EAGAIN);
		answer(r, 1);
	}
	answer(r, -EAGAIN);
	answer(r, -ECANCELED); /* at the time limit */
	answer(r, -ECANCELED);
	answer(r, -EAGAIN);
	assert(rtl_submit(r) == 2); /* with its limit */
	assert(!rtl_reap(r, events, 16));
	assert(!connect(client, (struct sockaddr *)&address, sizeof(address)));
	accepted = reap_one(r);
	assert(accepted >= 0 && !close(accepted));

	assert(!rtl_accept(r, 2, listener));
	answer(r, -EAGAIN);
	assert(rtl_submit(r) == 2); /* with its limit */
	assert(!rtl_cancel(r, 2));
	assert(reap_one(r) == -ECANCELED);
	while (rtl_free(&r))
		rtl_reap(r, events, 16);
	return 0;
}
