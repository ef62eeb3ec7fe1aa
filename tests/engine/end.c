/* SPDX-License-Identifier: MIT */
/*
 * The end of a play, in steps: what must end by itself does; the rest is told
 * to end, and does; then nothing is left of anything.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "faults.h"
#include "play.h"

/* Will something of it end without anybody's doing? */
static bool is_to_end(const struct play *p, const struct request *q)
{
	if (q->over)
		return false;
	if (q->opcode == RTL_CLOSE)
		return q->cancelled || (q->connection->released &&
					!q->connection->outbox);
	if (q->kind == REQUEST && q->opcode == RTL_OUTBOX &&
	    rtl_outbox_notify_below(p->ring, q->id, 0))
		return true;
	return q->kind == SEGMENT || q->cancelled || q->shut_down ||
	       !q->endless || q->notify_below;
}

static bool is_settled(const struct play *p)
{
	for (unsigned int i = 0; i < p->n_requests; i++)
		if (is_to_end(p, &p->requests[i]))
			return false;
	return true;
}

static void settle(struct play *p)
{
	trace("--- settle");
	wait_until(p, is_settled);
}

static void tell_to_end(struct play *p, struct request *q)
{
	if (q->kind == SEGMENT || q->over || q->shut_down || q->cancelled)
		return;
	if (q->opcode == RTL_OUTBOX && !one_in(&p->random, 5))
		call_shutdown(p, q, now_ns() + NS_PER_MS *
				    (int64_t)below(&p->random, 5000));
	else if (q->opcode != RTL_SEND && q->opcode != RTL_CLOSE)
		call_cancel(p, q);
}

static void tell_all_to_end(struct play *p)
{
	trace("--- end");
	for (unsigned int i = 0; i < p->n_requests; i++)
		tell_to_end(p, &p->requests[i]);
}

static void release_all(struct play *p)
{
	for (unsigned int i = 0; i < MAX_CONNECTIONS; i++) {
		struct connection *c = &p->connections[i];

		if (c->open && c->closing && !c->closing->cancelled &&
		    !c->released)
			connection_release(p, c);
	}
}

static bool is_quiet(const struct play *p)
{
	struct rtl_counters n;

	rtl_counters(p->ring, &n);
	return !n.in_flight && !n.control_in_flight;
}

/*
 * A peer may never hear of a reset: what it had no room for was dropped, so
 * the RST is not the next that it expects, and a limit holds its question back.
 */
static bool must_hear_of_end(const struct connection *c)
{
	return c->open && c->theirs >= 0 && !c->broken;
}

static bool peers_are_gone(const struct play *p)
{
	for (unsigned int i = 0; i < MAX_CONNECTIONS; i++)
		if (must_hear_of_end(&p->connections[i]))
			return false;
	return true;
}

/* What was not given to the engine is ours to close. */
static void close_the_rest(struct play *p)
{
	for (unsigned int i = 0; i < MAX_CONNECTIONS; i++) {
		struct connection *c = &p->connections[i];

		if (!c->open || c->closing)
			continue;
		shutdown(c->ours, SHUT_WR);
		c->our_fin = true;
	}
	wait_until(p, peers_are_gone);
	for (unsigned int i = 0; i < MAX_CONNECTIONS; i++) {
		struct connection *c = &p->connections[i];

		if (!c->open)
			continue;
		if (!c->closing)
			c->closed = !close(c->ours);
		if (c->theirs >= 0)
			close(c->theirs);
		connection_end(c);
	}
}

/*
 * Every buffer of the pool is there: as many messages as there are buffers
 * fill each of them once, and none finds the pool dry.
 */
static void take_census(struct play *p)
{
	struct rtl_counters before, after;
	bool seen[MAX_BUFFERS] = { false };
	uint64_t last = p->last_id + p->buffers;
	int64_t events[2 * MAX_BUFFERS * RTL_EVENT_FIELDS];
	unsigned int found = 0;
	int ends[2], n;

	rtl_counters(p->ring, &before);
	CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends),
	      "harness: socketpair: %s", strerror(errno));
	while (p->last_id < last) {
		CHECK(send(ends[1], "x", 1, 0) == 1, "harness: send");
		n = ENGINE(rtl_recv, p->ring, ++p->last_id, ends[0], 1);
		CHECK(!n, "recv: %s", strerror(-n));
	}
	n = ENGINE(rtl_submit, p->ring);
	CHECK(n >= 0, "submit: %s", strerror(-n));
	while ((n = ENGINE(rtl_reap, p->ring, events, 2 * MAX_BUFFERS)) > 0)
		for (int i = 0; i < n; i++) {
			int64_t what = events[i * RTL_EVENT_FIELDS + RTL_KIND];

			if (what < 0)
				continue;
			CHECK(what < (int64_t)p->buffers && !seen[what],
			      "buffer %lld is there twice", (long long)what);
			seen[what] = true;
			found++;
		}
	rtl_counters(p->ring, &after);
	CHECK(found == p->buffers && after.retries == before.retries,
	      "%u of %u buffers are there", found, p->buffers);
	close(ends[0]);
	close(ends[1]);
}

static void check_all_completed(const struct play *p)
{
	struct rtl_counters n;

	rtl_counters(p->ring, &n);
	CHECK(p->multishot || n.completed == n.submitted,
	      "%llu completed of %llu", (unsigned long long)n.completed,
	      (unsigned long long)n.submitted);
}

void play_end(struct play *p)
{
	int error;

	if (one_in(&p->random, 4))
		ENGINE_VOID(rtl_expedite_close, p->ring);
	if (!one_in(&p->random, 5))
		settle(p);
	if (requests_live(p)) {
		error = ENGINE(rtl_free, &p->ring);
		CHECK(error == -EBUSY, "free of a busy ring: %d", error);
	}
	tell_all_to_end(p);
	settle(p);
	release_all(p);
	settle(p);
	close_the_rest(p);
	wait_until(p, is_quiet);
	check_all_completed(p);
	faults_stop();
	take_census(p);
	error = ENGINE(rtl_free, &p->ring);
	CHECK(!error, "free: %s", strerror(-error));
	requests_free(p);
}
