/* SPDX-License-Identifier: MIT */
/* What rtl_reap() reports, held against the model. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "faults.h"
#include "play.h"

/* Lent buffers hold what they held when they were lent. */
void check_loans(struct play *p)
{
	const unsigned char *pool = rtl_pool(p->ring);

	for (unsigned int i = 0; i < p->n_loans; i++) {
		const struct loan *l = &p->loans[i];

		flow_check(l->flow, l->position,
			   pool + (size_t)l->buffer * p->buffer_size, l->len,
			   "in a lent buffer");
	}
}

static void lend(struct play *p, struct connection *c, unsigned int buffer,
		 unsigned int len)
{
	struct loan *l = &p->loans[p->n_loans++];

	CHECK(buffer < p->buffers, "there is no buffer %u", buffer);
	CHECK(len && len <= p->buffer_size, "%u bytes in a buffer", len);
	for (unsigned int i = 0; i + 1 < p->n_loans; i++)
		CHECK(p->loans[i].buffer != buffer, "buffer %u is lent twice",
		      buffer);
	l->buffer = buffer;
	l->len = len;
	l->flow = &c->in;
	l->position = c->in.arrived;
}

static void receive(struct play *p, struct connection *c, unsigned int len)
{
	c->in.arrived += len;
	p->received += len;
	CHECK(c->in.arrived <= c->in.written, "fd %d receives too much",
	      c->ours);
}

static void on_data(struct play *p, struct request *q, int64_t len,
		    int64_t buffer)
{
	struct connection *c = q->connection;

	CHECK(q->opcode == RTL_RECV || q->opcode == RTL_RECV_MULTISHOT,
	      "a buffer for %s", opcode_name(q->opcode));
	lend(p, c, (unsigned int)buffer, (unsigned int)len);
	flow_check(&c->in, c->in.arrived,
		   (unsigned char *)rtl_pool(p->ring) +
		   (size_t)buffer * p->buffer_size,
		   (unsigned int)len, "received");
	receive(p, c, (unsigned int)len);
	q->used = (unsigned int)len;
}

static void on_progress(struct request *q, int64_t pending)
{
	CHECK(q->opcode == RTL_OUTBOX && q->notify_below,
	      "progress that nobody asked for");
	CHECK(pending >= 0 && (uint64_t)pending < q->notify_below,
	      "progress: %lld pending, not below %llu", (long long)pending,
	      (unsigned long long)q->notify_below);
	q->notify_below = 0;
}

/* May this request end by -ECANCELED now? */
static bool may_be_cancelled(const struct request *q)
{
	if (q->cancelled)
		return true;
	if (q->opcode == RTL_CLOSE || q->opcode == RTL_OUTBOX ||
	    q->deadline < 0)
		return false;
	return now_ns() >= q->deadline;
}

/* What is sent by send(2) may fail. With io_uring that is what is left last. */
static bool may_break(const struct play *p, const struct request *q)
{
	return (q->shut_down || p->engine == RTL_EPOLL) &&
	       faults_in_play(FAULT_SEND_BROKEN);
}

static void check_error(const struct play *p, const struct request *q,
			int64_t error)
{
	const struct connection *c = q->connection;
	bool ok = false;

	if (error == -ECANCELED)
		ok = may_be_cancelled(q);
	else if (error == -EPIPE)
		ok = c && (c->broken || c->our_fin || may_break(p, q));
	else if (error == -ECONNRESET || error == -ENOTCONN)
		ok = c && c->broken;
	else if (error == -ETIMEDOUT)
		ok = q->shut_down && q->deadline >= 0 &&
		     now_ns() >= q->deadline;
	else if (error == -EIO || error == -EINTR)
		ok = q->opcode == RTL_CLOSE && faults_in_play(FAULT_CLOSE);
	CHECK(ok, "%s %llu on fd %d ends by %s", opcode_name(q->opcode),
	      (unsigned long long)q->id, q->fd, strerror((int)-error));
}

static void check_eof(const struct connection *c)
{
	CHECK(c->their_fin || c->broken, "fd %d: an end that is none", c->ours);
	CHECK(c->in.anything || c->broken || c->in.arrived == c->in.written,
	      "fd %d: the end comes after %llu of %llu bytes", c->ours,
	      (unsigned long long)c->in.arrived,
	      (unsigned long long)c->in.written);
}

static void recv_over(struct play *p, struct request *q, int64_t result)
{
	(void)p;
	q->connection->readers--;
	CHECK(result <= 0 || result == q->used, "recv %llu: %lld of %u",
	      (unsigned long long)q->id, (long long)result, q->used);
	if (!result)
		check_eof(q->connection);
}

static void multishot_over(struct play *p, struct request *q, int64_t result)
{
	(void)p;
	q->connection->readers--;
	CHECK(result <= 0, "recv_multishot ends by %lld", (long long)result);
	if (!result)
		check_eof(q->connection);
}

static void recv_into_over(struct play *p, struct request *q, int64_t result)
{
	struct connection *c = q->connection;

	c->readers--;
	CHECK(result <= q->len, "%lld of %u bytes", (long long)result, q->len);
	if (!result)
		check_eof(c);
	if (result <= 0)
		return;
	flow_check(&c->in, c->in.arrived, q->memory, (unsigned int)result,
		   "received into memory");
	receive(p, c, (unsigned int)result);
}

static void send_over(struct play *p, struct request *q, int64_t result)
{
	struct connection *c = q->connection;

	c->writers--;
	CHECK(result <= q->len && result, "send: %lld of %u", (long long)result,
	      q->len);
	if (result < 0) {
		if (result == -ECANCELED)
			return; /* else a part may have been sent */
		c->out.written += q->len;
		c->out.cut = true;
		return;
	}
	p->sent += (uint64_t)result;
	c->out.written += (uint64_t)result;
}

static void accept_over(struct play *p, struct request *q, int64_t result)
{
	(void)p;
	(void)q;
	if (result >= 0)
		close((int)result);
}

static void connect_over(struct play *p, struct request *q, int64_t result)
{
	(void)p;
	CHECK(result <= 0, "connect: %lld", (long long)result);
	close(q->fd);
}

static void poll_over(struct play *p, struct request *q, int64_t result)
{
	(void)p;
	CHECK(result, "poll %llu ends by 0", (unsigned long long)q->id);
}

static void close_over(struct play *p, struct request *q, int64_t result)
{
	struct connection *c = q->connection;

	CHECK(result <= 0 || (result == 1 && (c->their_fin || c->broken)),
	      "close: %lld", (long long)result);
	if (q->cancelled) {
		CHECK(!c->closed, "fd %d is closed all the same", c->ours);
		c->closing = NULL;
		c->spent = true;
		return;
	}
	CHECK(c->closed, "close %llu is over, fd %d is open",
	      (unsigned long long)q->id, c->ours);
	q->over = true;
	CHECK(!connection_is_used(p, c), "fd %d is closed in use", c->ours);
	q->over = false;
}

static void outbox_over(struct play *p, struct request *q, int64_t result)
{
	struct connection *c = q->connection;

	c->writers--;
	c->outbox = NULL;
	if (result) {
		c->out.cut = true;
		return;
	}
	CHECK(q->shut_down, "outbox %llu ends by itself",
	      (unsigned long long)q->id);
	p->sent += q->written;
}

static void (*const over[])(struct play *, struct request *, int64_t) = {
	[RTL_RECV] = recv_over,
	[RTL_RECV_INTO] = recv_into_over,
	[RTL_SEND] = send_over,
	[RTL_ACCEPT] = accept_over,
	[RTL_CONNECT] = connect_over,
	[RTL_POLL] = poll_over,
	[RTL_CLOSE] = close_over,
	[RTL_RECV_MULTISHOT] = multishot_over,
	[RTL_OUTBOX] = outbox_over,
};

static void on_over(struct play *p, struct request *q, int64_t result)
{
	if (q->kind == SEGMENT) {
		CHECK(!result, "a segment comes back with %lld",
		      (long long)result);
	} else {
		if (result < 0)
			check_error(p, q, result);
		over[q->opcode](p, q, result);
	}
	request_over(q);
}

static void on_event(struct play *p, const int64_t *event)
{
	struct request *q = request_find(p, (uint64_t)event[RTL_ID]);

	trace("  event %llu %s: %lld, %lld", (unsigned long long)event[RTL_ID],
	      q ? opcode_name(q->opcode) : "?", (long long)event[RTL_RESULT],
	      (long long)event[RTL_KIND]);
	CHECK(q && !q->over, "an event of %llu, which is not live",
	      (unsigned long long)event[RTL_ID]);
	p->moves++;
	if (event[RTL_KIND] >= 0)
		on_data(p, q, event[RTL_RESULT], event[RTL_KIND]);
	else if (event[RTL_KIND] == RTL_PROGRESS)
		on_progress(q, event[RTL_RESULT]);
	else if (event[RTL_KIND] == RTL_OVER)
		on_over(p, q, event[RTL_RESULT]);
	else
		fail("an event of kind %lld", (long long)event[RTL_KIND]);
}

static void check_lent(struct play *p)
{
	struct rtl_counters n;

	rtl_counters(p->ring, &n);
	CHECK(n.buffers_lent >= p->n_loans && n.buffers_lent <= p->buffers,
	      "%llu buffers are lent, %u were named",
	      (unsigned long long)n.buffers_lent, p->n_loans);
	p->lent = (unsigned int)n.buffers_lent;
}

/* Returns the number of events. */
unsigned int reap(struct play *p)
{
	unsigned int most = 2 + below(&p->random, MAX_EVENTS - 1);
	int64_t *events = malloc(most * RTL_EVENT_FIELDS * sizeof(*events));
	int n;

	check_loans(p);
	p->n_loans = 0;
	n = ENGINE(rtl_reap, p->ring, events, most);
	trace("reap %u: %d", most, n);
	CHECK(n >= 0, "reap: %s", strerror(-n));
	CHECK(n <= (int)most, "reap: %d events, %u asked for", n, most);
	for (int i = 0; i < n; i++)
		on_event(p, events + i * RTL_EVENT_FIELDS);
	free(events);
	check_lent(p);
	return (unsigned int)n;
}
