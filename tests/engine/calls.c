/* SPDX-License-Identifier: MIT */
/*
 * One call at random, and what the model makes of it. A call that fails has
 * changed nothing.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "faults.h"
#include "play.h"

#define MOST_BYTES 6000u
#define MOST_SHARING 6u
#define FAR_NS (INT64_C(600) * 1000 * NS_PER_MS)
#define NO_SUCH_FD 100000

static bool no_memory(int64_t error)
{
	return error == -ENOMEM &&
	       faults_in_call(FAULT_MALLOC) + faults_in_call(FAULT_CALLOC);
}

static bool is_accepted(struct play *p, struct request *q, int error)
{
	trace("%s %llu fd %d len %u%s: %d", opcode_name(q->opcode),
	      (unsigned long long)q->id, q->fd, q->len,
	      q->deadline < 0 ? "" : " timed", error);
	if (!error)
		return true;
	CHECK(no_memory(error), "%s: %s", opcode_name(q->opcode),
	      strerror(-error));
	request_forget(p, q);
	return false;
}

static unsigned int any_len(struct play *p)
{
	return 1 + below(&p->random, one_in(&p->random, 3) ? MOST_BYTES : 300);
}

static int64_t soon(struct play *p)
{
	return now_ns() + (int64_t)below(&p->random, 12) * NS_PER_MS;
}

static int64_t soon_or_never(struct play *p)
{
	return one_in(&p->random, 2) ? soon(p) : RTL_NO_DEADLINE;
}

static int64_t far_or_never(struct play *p)
{
	return one_in(&p->random, 2) ? now_ns() + FAR_NS : RTL_NO_DEADLINE;
}

static bool is_usable(const struct connection *c)
{
	return c->open && !c->closing && !c->spent;
}

static bool may_read(const struct connection *c)
{
	return is_usable(c) &&
	       c->readers < (c->in.anything ? MOST_SHARING : 1);
}

static bool may_write(const struct connection *c)
{
	return is_usable(c) && !c->out.cut &&
	       c->writers < (c->out.anything ? MOST_SHARING : 1);
}

static void do_recv(struct play *p, struct connection *c)
{
	struct request *q;
	unsigned int len = any_len(p);

	if (!may_read(c))
		return;
	q = request_new(p, REQUEST, RTL_RECV, c);
	q->endless = true;
	if (is_accepted(p, q, ENGINE(rtl_recv, p->ring, q->id, c->ours, len)))
		c->readers++;
}

static void take_memory(struct request *q, unsigned int len)
{
	q->memory = malloc(len);
	q->len = len;
}

static void do_recv_into(struct play *p, struct connection *c)
{
	struct request *q;

	if (!may_read(c))
		return;
	q = request_new(p, REQUEST, RTL_RECV_INTO, c);
	q->endless = true;
	take_memory(q, any_len(p));
	if (is_accepted(p, q, ENGINE(rtl_recv_into, p->ring, q->id, c->ours,
				     q->memory, q->len)))
		c->readers++;
}

static void do_multishot(struct play *p, struct connection *c)
{
	struct request *q;

	if (!may_read(c))
		return;
	q = request_new(p, REQUEST, RTL_RECV_MULTISHOT, c);
	q->endless = true;
	if (is_accepted(p, q, ENGINE(rtl_recv_multishot, p->ring, q->id,
				     c->ours))) {
		c->readers++;
		p->multishot = true;
	}
}

static void call_send(struct play *p, struct connection *c, unsigned int len)
{
	struct request *q = request_new(p, REQUEST, RTL_SEND, c);

	take_memory(q, len);
	flow_fill(&c->out, c->out.written, q->memory, q->len);
	q->deadline = soon_or_never(p);
	if (!is_accepted(p, q, ENGINE(rtl_send, p->ring, q->id, c->ours,
				      q->memory, q->len, q->deadline)))
		return;
	c->writers++;
	p->perhaps_sent += q->len;
}

static void do_send(struct play *p, struct connection *c)
{
	if (may_write(c))
		call_send(p, c, any_len(p));
}

static void do_poll(struct play *p, struct connection *c)
{
	static const unsigned int masks[] = { 0, POLLIN, POLLOUT };
	struct request *q;

	if (!is_usable(c))
		return;
	q = request_new(p, REQUEST, RTL_POLL, c);
	q->deadline = soon_or_never(p);
	q->endless = q->deadline < 0;
	is_accepted(p, q, ENGINE(rtl_poll, p->ring, q->id, c->ours,
				 masks[below(&p->random, 3)], q->deadline));
}

/* More at once than the queues and the table have room for. */
static void do_burst(struct play *p, struct connection *c)
{
	unsigned int n = below(&p->random, 120);

	if (one_in(&p->random, 8))
		while (n--)
			do_poll(p, c);
}

static void do_accept(struct play *p, struct connection *c)
{
	struct request *q = request_new(p, REQUEST, RTL_ACCEPT, NULL);

	(void)c;
	q->fd = p->listener;
	q->endless = true;
	is_accepted(p, q, ENGINE(rtl_accept, p->ring, q->id, p->listener));
}

/* The rest of the program has its own use for signals, and may change it. */
static void do_use_signal(struct play *p, struct connection *c)
{
	int number = SIGRTMAX - (int)below(&p->random, 3);

	(void)c;
	signal(number, one_in(&p->random, 2) ? SIG_IGN : SIG_DFL);
}

static void do_connect(struct play *p, struct connection *c)
{
	struct request *q = request_new(p, REQUEST, RTL_CONNECT, NULL);

	(void)c;
	q->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (!is_accepted(p, q, ENGINE(rtl_connect, p->ring, q->id, q->fd,
				      &p->address, sizeof(p->address))))
		close(p->requests[p->n_requests].fd);
}

static void do_outbox(struct play *p, struct connection *c)
{
	struct request *q;

	if (!may_write(c) || c->outbox)
		return;
	q = request_new(p, REQUEST, RTL_OUTBOX, c);
	q->endless = true;
	if (is_accepted(p, q, ENGINE(rtl_outbox_open, p->ring, q->id,
				     c->ours))) {
		c->writers++;
		c->outbox = q;
	}
}

static bool takes_bytes(const struct request *q)
{
	return !q->cancelled && !q->shut_down;
}

/* What is borrowed may have been sent at once. */
static void check_write(struct play *p, struct request *q, unsigned int len,
		      int64_t pending, bool borrowed)
{
	const struct connection *c = q->connection;

	trace("write %u into %llu: %lld", len, (unsigned long long)q->id,
	      (long long)pending);
	if (!takes_bytes(q)) {
		CHECK(pending == -EPIPE || pending == -ENOENT,
		      "write after the end: %lld", (long long)pending);
		return;
	}
	if (no_memory(pending))
		return;
	if (borrowed && (pending == -EPIPE || pending == -ECONNRESET)) {
		CHECK(c->broken || c->our_fin ||
		      faults_in_call(FAULT_SEND_BROKEN),
		      "write to a connection that is none: %lld",
		      (long long)pending);
		return;
	}
	q->written += len;
	q->connection->out.written += len;
	p->perhaps_sent += len;
	CHECK(pending >= (borrowed ? 0 : len) &&
	      (uint64_t)pending <= q->written,
	      "write %u of %llu in all: %lld pending", len,
	      (unsigned long long)q->written, (long long)pending);
}

static void do_write(struct play *p, struct connection *c)
{
	unsigned char data[MOST_BYTES];
	unsigned int len = any_len(p) - one_in(&p->random, 20);
	int64_t pending;

	if (!c->open || !c->outbox)
		return;
	flow_fill(&c->out, c->out.written, data, len);
	pending = ENGINE(rtl_outbox_write, p->ring, c->outbox->id, data, len,
			 0);
	memset(data, 0xdd, len);
	check_write(p, c->outbox, len, pending, false);
}

static void do_write_borrowed(struct play *p, struct connection *c)
{
	unsigned int len = any_len(p);
	struct request *s;
	int64_t pending;

	if (!c->open || !c->outbox)
		return;
	s = request_new(p, SEGMENT, RTL_OUTBOX, c);
	take_memory(s, len);
	flow_fill(&c->out, c->out.written, s->memory, len);
	pending = ENGINE(rtl_outbox_write, p->ring, c->outbox->id, s->memory,
			 len, s->id);
	check_write(p, c->outbox, len, pending, true);
	if (pending <= 0)
		request_forget(p, s);
}

static void do_notify(struct play *p, struct connection *c)
{
	uint64_t below_this = below(&p->random, 20000);
	struct request *q = c->outbox;
	int64_t pending;

	if (!c->open || !q)
		return;
	pending = ENGINE(rtl_outbox_notify_below, p->ring, q->id, below_this);
	CHECK(pending >= 0 && (uint64_t)pending <= q->written,
	      "pending of %llu: %lld", (unsigned long long)q->id,
	      (long long)pending);
	if ((uint64_t)pending >= below_this && below_this > q->notify_below)
		q->notify_below = below_this;
	trace("notify %llu below %llu: %lld", (unsigned long long)q->id,
	      (unsigned long long)below_this, (long long)pending);
}

static void do_shutdown(struct play *p, struct connection *c)
{
	bool never = one_in(&p->random, 4);

	if (c->open && c->outbox && one_in(&p->random, 4))
		call_shutdown(p, c->outbox, never ? RTL_NO_DEADLINE :
						  soon(p) - 2 * NS_PER_MS);
}

static bool is_expected_end(const struct request *q, int error, int64_t now)
{
	const struct connection *c = q->connection;

	if (error == -ETIMEDOUT)
		return q->deadline >= 0 && now >= q->deadline;
	if (error == -EPIPE && faults_in_call(FAULT_SEND_BROKEN))
		return true;
	return (error == -EPIPE || error == -ECONNRESET) && c->broken;
}

void call_shutdown(struct play *p, struct request *q, int64_t deadline)
{
	struct connection *c = q->connection;
	int ret;

	q->shut_down = true;
	q->deadline = deadline;
	ret = ENGINE(rtl_outbox_shutdown, p->ring, q->id, deadline);
	trace("shutdown %llu: %d", (unsigned long long)q->id, ret);
	if (ret == 1)
		return;
	CHECK(!q->cancelled, "shutdown after a cancellation: %d", ret);
	CHECK(!ret || is_expected_end(q, ret, now_ns()), "shutdown: %s",
	      strerror(-ret));
	if (ret)
		c->out.cut = true;
	else
		p->sent += q->written;
	request_over(q);
	c->outbox = NULL;
	c->writers--;
}

void call_cancel(struct play *p, struct request *q)
{
	int error = ENGINE(rtl_cancel, p->ring, q->id);

	trace("cancel %llu: %d", (unsigned long long)q->id, error);
	CHECK(error == (q->over ? -ENOENT : 0), "cancel of %s %llu, %s: %d",
	      opcode_name(q->opcode), (unsigned long long)q->id,
	      q->over ? "over" : "live", error);
	if (error || (q->opcode == RTL_CLOSE && q->connection->released))
		return;
	q->cancelled = true;
	if (q->opcode == RTL_OUTBOX)
		q->connection->out.cut = true;
	if (q->opcode == RTL_CLOSE)
		q->connection->broken = true;
}

static void do_cancel(struct play *p, struct connection *c)
{
	unsigned int recent = p->n_requests < 40 ? p->n_requests : 40;
	struct request *q;

	(void)c;
	if (!recent)
		return;
	q = &p->requests[p->n_requests - 1 - below(&p->random, recent)];
	if (q->kind == REQUEST)
		call_cancel(p, q);
}

static void on_close(struct play *p, struct connection *c, struct request *q)
{
	c->closing = q;
	for (unsigned int i = 0; i < p->n_requests; i++) {
		struct request *other = &p->requests[i];

		if (other->connection == c && other->kind == REQUEST &&
		    other != q && other->opcode != RTL_SEND &&
		    other->opcode != RTL_OUTBOX)
			other->cancelled = true;
	}
}

static void call_close(struct play *p, struct connection *c)
{
	uint64_t limit = one_in(&p->random, 2) ? 0 : 100000;
	bool far = !one_in(&p->random, 3);
	struct request *q;

	q = request_new(p, REQUEST, RTL_CLOSE, c);
	q->deadline = far ? far_or_never(p) : soon(p);
	if (!is_accepted(p, q, ENGINE(rtl_close, p->ring, q->id, c->ours,
				      limit, q->deadline)))
		return;
	on_close(p, c, q);
	c->broken |= !far;
}

static void do_close(struct play *p, struct connection *c)
{
	if (is_usable(c) && one_in(&p->random, 4))
		call_close(p, c);
}

static void do_release(struct play *p, struct connection *c)
{
	if (c->open && c->closing && !c->closing->cancelled && !c->released &&
	    (!c->outbox || one_in(&p->random, 2)))
		connection_release(p, c);
}

static void do_expedite(struct play *p, struct connection *c)
{
	(void)c;
	if (!one_in(&p->random, 30))
		return;
	trace("expedite closes");
	ENGINE_VOID(rtl_expedite_close, p->ring);
}

static void do_peer_write(struct play *p, struct connection *c)
{
	if (c->open && c->theirs >= 0 && !c->their_fin)
		peer_write(p, c, any_len(p));
}

static void do_peer_read(struct play *p, struct connection *c)
{
	if (c->open && c->theirs >= 0)
		peer_read(p, c, any_len(p));
}

static void do_peer_end(struct play *p, struct connection *c)
{
	if (!c->open || c->theirs < 0 || !one_in(&p->random, 8))
		return;
	if (c->their_fin || one_in(&p->random, 2))
		peer_close(p, c, one_in(&p->random, 2));
	else
		peer_fin(c);
}

/* Nothing holds the close up but a send that the kernel has already. */
static void do_hang_up(struct play *p, struct connection *c)
{
	if (!may_write(c) || c->outbox || c->theirs < 0 ||
	    !one_in(&p->random, 4))
		return;
	if (!c->their_fin)
		peer_fin(c);
	call_send(p, c, 10 * MOST_BYTES);
	call_submit(p);
	call_close(p, c);
	do_release(p, c);
}

static void do_open(struct play *p, struct connection *c)
{
	c = connection_slot(p);
	if (c)
		connection_open(p, c);
}

int call_submit(struct play *p)
{
	int ret;

	check_loans(p);
	p->n_loans = p->lent = 0;
	ret = ENGINE(rtl_submit, p->ring);
	trace("submit: %d", ret);
	CHECK(ret >= 0 || ret == -EAGAIN || ret == -EBUSY || ret == -ENOMEM,
	      "submit: %s", strerror(-ret));
	return ret;
}

static void do_submit(struct play *p, struct connection *c)
{
	(void)c;
	call_submit(p);
}

static void do_arm(struct play *p, struct connection *c)
{
	(void)c;
	arm(p);
}

static void do_busy_poll(struct play *p, struct connection *c)
{
	(void)c;
	ENGINE_VOID(rtl_busy_poll, p->ring, 1000);
}

static void do_reap(struct play *p, struct connection *c)
{
	(void)c;
	reap(p);
}

static void check_refusal(const char *what, int64_t got, int expected)
{
	CHECK(got == expected || no_memory(got), "%s: %lld instead of %d",
	      what, (long long)got, expected);
}

static void do_misuse(struct play *p, struct connection *c)
{
	struct rtl_ring *r = p->ring;
	uint64_t id = p->last_id + 1;

	if (c->open && c->closing && !c->closing->cancelled && !c->closed)
		check_refusal("second close", ENGINE(rtl_close, r, id, c->ours,
						     0, RTL_NO_DEADLINE),
			      -EALREADY);
	check_refusal("fd -1", ENGINE(rtl_recv, r, id, -1, 1), -EBADF);
	check_refusal("no such fd", ENGINE(rtl_recv_multishot, r, id,
					   NO_SUCH_FD), -EBADF);
	check_refusal("cancel", ENGINE(rtl_cancel, r, id), -ENOENT);
	check_refusal("release", ENGINE(rtl_release, r, id), -ENOENT);
	check_refusal("write", ENGINE(rtl_outbox_write, r, id, "x", 1, 0),
		      -ENOENT);
	check_refusal("notify", ENGINE(rtl_outbox_notify_below, r, id, 1),
		      -ENOENT);
	check_refusal("shutdown", ENGINE(rtl_outbox_shutdown, r, id, 0),
		      -ENOENT);
}

static const struct {
	unsigned int weight;
	void (*run)(struct play *p, struct connection *c);
} steps[] = {
	{ 6, do_recv },
	{ 4, do_recv_into },
	{ 4, do_multishot },
	{ 6, do_send },
	{ 4, do_poll },
	{ 1, do_burst },
	{ 1, do_accept },
	{ 1, do_use_signal },
	{ 1, do_connect },
	{ 3, do_outbox },
	{ 10, do_write },
	{ 5, do_write_borrowed },
	{ 3, do_notify },
	{ 3, do_shutdown },
	{ 4, do_cancel },
	{ 3, do_close },
	{ 3, do_release },
	{ 1, do_expedite },
	{ 10, do_peer_write },
	{ 10, do_peer_read },
	{ 2, do_peer_end },
	{ 3, do_hang_up },
	{ 6, do_open },
	{ 8, do_submit },
	{ 4, do_arm },
	{ 1, do_busy_poll },
	{ 9, do_reap },
	{ 1, do_misuse },
};

#define STEPS (sizeof(steps) / sizeof(*steps))

void play_step(struct play *p)
{
	struct connection *c =
		&p->connections[below(&p->random, MAX_CONNECTIONS)];
	unsigned int total = 0, i;

	for (i = 0; i < STEPS; i++)
		total += steps[i].weight;
	total = below(&p->random, total);
	for (i = 0; total >= steps[i].weight; i++)
		total -= steps[i].weight;
	steps[i].run(p, c);
}
