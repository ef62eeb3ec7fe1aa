/* SPDX-License-Identifier: MIT */
/*
 * A ring that can't be made says why, and leaves nothing behind: each call
 * that rtl_open() makes fails once.
 */
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "faults.h"
#include "play.h"

void play_births(enum rtl_engine engine)
{
	int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	struct rtl_ring *ring;
	unsigned int n = 0;
	int error;

	error = ENGINE(rtl_open, &ring, fd, 1, 16, 4, 256, engine);
	CHECK(error == -EINVAL, "open with one entry: %d", error);
	do {
		faults_start_nth(++n);
		error = ENGINE(rtl_open, &ring, fd, 8, 16, 4, 256, engine);
		CHECK(error == (faults_reached_nth() ? -ENOMEM : 0),
		      "open with failure %u: %d", n, error);
		CHECK(!error == !!ring, "open: %d and a ring", error);
	} while (error);
	faults_stop();
	CHECK(n > 8, "harness: only %u calls can fail", n - 1);
	for (int o = RTL_RECV; o <= RTL_OUTBOX; o++)
		CHECK(ENGINE(rtl_supports, ring, (enum rtl_opcode)o) == 1,
		      "%s is not supported",
		      opcode_name((enum rtl_opcode)o));
	error = ENGINE(rtl_free, &ring);
	CHECK(!error && !ring, "free: %s", strerror(-error));
	CHECK(!ENGINE(rtl_free, &ring), "free once more");
	close(fd);
}
