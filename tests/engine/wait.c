/* SPDX-License-Identifier: MIT */
/* Waiting, in both ways that drivers have. */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>

#include "faults.h"
#include "play.h"

static int64_t limit_ns;

/* Nothing for as long as this is a fault. */
void wait_set_limit(int64_t ns)
{
	limit_ns = ns;
}

void arm(struct play *p)
{
	int error = ENGINE(rtl_arm, p->ring);

	trace("arm: %d", error);
	CHECK(!error, "arm: %s", strerror(-error));
}

static void trace_live(const struct request *q)
{
	trace("live: %s %llu fd %d%s%s%s%s", opcode_name(q->opcode),
	      (unsigned long long)q->id, q->fd,
	      q->kind == SEGMENT ? ", a segment" : "",
	      q->cancelled ? ", cancelled" : "",
	      q->shut_down ? ", shut down" : "",
	      q->deadline >= 0 ? ", timed" : "");
}

/* Something should have happened for so long that it never will. */
static void hang(const struct play *p, const char *what)
	__attribute__((noreturn));
static void hang(const struct play *p, const char *what)
{
	for (unsigned int i = 0; i < p->n_requests; i++)
		if (!p->requests[i].over)
			trace_live(&p->requests[i]);
	fail("%s, and %u requests are out", what, requests_live(p));
}

static unsigned int watch_peers(struct play *p, struct pollfd *fds)
{
	unsigned int n = 0;

	for (unsigned int i = 0; i < MAX_CONNECTIONS; i++) {
		const struct connection *c = &p->connections[i];

		if (c->open && c->theirs >= 0)
			fds[n++] = (struct pollfd){ .fd = c->theirs,
						    .events = POLLIN };
	}
	return n;
}

/*
 * An event loop: sleep until the ring or a peer has something. That sends
 * are over which nobody is told of is no reason to wake, but to arm.
 */
static void sleep_in_poll(struct play *p,
			  bool (*is_done)(const struct play *p))
{
	struct pollfd fds[MAX_CONNECTIONS + 1];
	unsigned int n;

	fds[0] = (struct pollfd){ .fd = rtl_sleep_fd(p->ring),
				  .events = POLLIN };
	if (call_submit(p) < 0)
		eventfd_write(p->eventfd, 1);
	arm(p);
	if (is_done(p))
		return;
	n = 1 + watch_peers(p, fds + 1);
	if (poll(fds, n, (int)(limit_ns / NS_PER_MS)) <= 0)
		hang(p, "nothing wakes who sleeps");
	ENGINE_VOID(rtl_clear, p->ring);
}

static void sleep_in_ring(struct play *p)
{
	int error;

	check_loans(p);
	p->n_loans = p->lent = 0;
	error = ENGINE(rtl_wait, p->ring,
		       (int64_t)below(&p->random, 20) * NS_PER_MS);
	trace("wait: %d", error);
	CHECK(!error || error == -ETIME || error == -EINTR, "wait: %s",
	      strerror(-error));
}

static void check_progress(struct play *p)
{
	static uint64_t moves;
	static int64_t since;
	int64_t now = now_ns();

	if (moves != p->moves) {
		moves = p->moves;
		since = now;
	}
	if (now - since >= limit_ns)
		hang(p, "nothing moves");
}

static void take_all(struct play *p)
{
	while (reap(p))
		;
	for (unsigned int i = 0; i < MAX_CONNECTIONS; i++)
		if (p->connections[i].open)
			peer_finish(p, &p->connections[i]);
}

void wait_until(struct play *p, bool (*is_done)(const struct play *p))
{
	while (!is_done(p)) {
		if (one_in(&p->random, 2))
			sleep_in_ring(p);
		else
			sleep_in_poll(p, is_done);
		take_all(p);
		check_counters(p);
		check_progress(p);
	}
}
