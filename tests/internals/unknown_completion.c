/* SPDX-License-Identifier: MIT */
/*
 * A completion that no request of the table waits for, and that took a buffer
 * of the pool: the buffer goes back. The pool has one, so that the next receive
 * finds none if it does not.
 */
#include <assert.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "internal.h"

#define UNKNOWN 4711u

static void receive_for_nobody(struct rtl_ring *r, int fd)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&r->uring);

	io_uring_prep_recv(sqe, fd, NULL, 100, 0);
	sqe->flags |= IOSQE_BUFFER_SELECT;
	io_uring_sqe_set_data64(sqe, UNKNOWN);
	assert(rtl_submit(r) == 1);
}

static int reap(struct rtl_ring *r, int64_t *events)
{
	assert(!rtl_wait(r, RTL_NS_PER_SECOND));
	return rtl_reap(r, events, 16);
}

int main(void)
{
	int64_t events[16 * RTL_EVENT_FIELDS];
	int sockets[2], wakeup = eventfd(0, EFD_NONBLOCK);
	struct rtl_ring *r;

	assert(!socketpair(AF_UNIX, SOCK_STREAM, 0, sockets));
	assert(!rtl_open(&r, wakeup, 8, 32, 1, 4096, RTL_DEFERRED));
	receive_for_nobody(r, sockets[0]);
	assert(write(sockets[1], "lost", 4) == 4);
	assert(!reap(r, events));

	assert(!rtl_recv(r, 1, sockets[0], 100));
	assert(write(sockets[1], "found", 5) == 5);
	assert(reap(r, events) == 2);
	assert(events[RTL_ID] == 1 && events[RTL_RESULT] == 5);
	assert(!memcmp(rtl_pool(r), "found", 5));
	assert(!rtl_reap(r, events, 16));
	assert(!rtl_free(&r));
	return 0;
}
