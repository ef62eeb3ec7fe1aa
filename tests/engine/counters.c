/* SPDX-License-Identifier: MIT */
/* The engine's counters are the model's. */
#include "faults.h"
#include "play.h"

#define LLU(x) ((unsigned long long)(x))

/* Unsent bytes of an outbox that is in order; UINT64_MAX: there is none. */
static uint64_t unsent(struct play *p, const struct connection *c)
{
	if (!c->open || !c->outbox || c->outbox->cancelled)
		return UINT64_MAX;
	return (uint64_t)rtl_outbox_notify_below(p->ring, c->outbox->id, 0);
}

static unsigned int idle_outboxes(struct play *p)
{
	unsigned int n = 0;

	for (unsigned int i = 0; i < MAX_CONNECTIONS; i++)
		n += unsent(p, &p->connections[i]) == 0;
	return n;
}

/* What live outboxes have sent so far. */
static uint64_t sent_by_outboxes(struct play *p)
{
	uint64_t sent = 0;

	for (unsigned int i = 0; i < MAX_CONNECTIONS; i++) {
		const struct connection *c = &p->connections[i];

		if (unsent(p, c) != UINT64_MAX)
			sent += c->outbox->written - unsent(p, c);
	}
	return sent;
}

void check_counters(struct play *p)
{
	uint64_t sent = p->sent + sent_by_outboxes(p);
	struct rtl_counters n;

	rtl_counters(p->ring, &n);
	CHECK(n.in_flight == requests_live(p), "%llu in flight, %u live",
	      LLU(n.in_flight), requests_live(p));
	CHECK(n.idle == idle_outboxes(p), "%llu idle outboxes, %u are empty",
	      LLU(n.idle), idle_outboxes(p));
	CHECK(n.bytes_received == p->received, "%llu received, not %llu",
	      LLU(n.bytes_received), LLU(p->received));
	CHECK(n.bytes_sent >= sent && n.bytes_sent <= p->perhaps_sent,
	      "%llu sent, not %llu to %llu", LLU(n.bytes_sent), LLU(sent),
	      LLU(p->perhaps_sent));
	CHECK(p->engine == RTL_EPOLL || n.submitted == faults_sqes_taken(),
	      "%llu submitted, not %llu",
	      LLU(n.submitted), LLU(faults_sqes_taken()));
	CHECK(p->multishot || n.completed <= n.submitted,
	      "%llu completed of %llu", LLU(n.completed), LLU(n.submitted));
	CHECK(rtl_moved(p->ring) == n.bytes_sent + n.bytes_received,
	      "moved %llu", LLU(rtl_moved(p->ring)));
	CHECK(n.buffers_lent == p->lent, "%llu lent, not %u",
	      LLU(n.buffers_lent), p->lent);
}
