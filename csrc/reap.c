/* SPDX-License-Identifier: MIT */
/* Events: to take those that are there, to be woken by the next, to wait. */
#include <errno.h>
#include <sys/eventfd.h>

#include "internal.h"

/* How often to look before the clock is read again. */
#define POLLS_PER_CLOCK 64u

static bool has_events(const struct rtl_ring *r)
{
	return rtl_has_ended(r) || r->backend->has_completions(r);
}

/*
 * When half of the pool is lent, that is enough: the caller has to look at what
 * it was lent before it gets more.
 */
int rtl_reap(struct rtl_ring *r, int64_t *events, unsigned int max_events)
{
	struct rtl_events e = { .next = events, .room = max_events };

	r->backend->disarm(r);
	r->backend->give_back(r);
	while (e.room >= RTL_MOST_EVENTS &&
	       r->lent_len <= r->stats.buffers / 2) {
		int error = r->backend->run(r);

		if (error && error != -EAGAIN)
			return e.count ? (int)e.count : error;
		if (!has_events(r))
			break;
		r->backend->complete(r, &e);
		rtl_report_ended(r, &e);
	}
	return (int)e.count;
}

/* The descriptor to sleep on; a counter at its limit is readable already. */
static int wake(const struct rtl_ring *r)
{
	return eventfd_write(r->eventfd, 1) && errno != EAGAIN ? -errno : 0;
}

int rtl_arm(struct rtl_ring *r)
{
	int error = r->backend->arm(r);

	if (error && error != -EAGAIN)
		return error;
	r->backend->complete_silent(r);
	if (error || has_events(r) || r->queued.head || r->waiting.head)
		return wake(r);
	return 0;
}

int rtl_sleep_fd(const struct rtl_ring *r)
{
	return r->backend->sleep_fd(r);
}

void rtl_clear(const struct rtl_ring *r)
{
	eventfd_t ignored;

	eventfd_read(r->eventfd, &ignored);
}

int rtl_ready(struct rtl_ring *r)
{
	return rtl_has_ended(r) || r->backend->may_have_completions(r);
}

void rtl_busy_poll(struct rtl_ring *r, int64_t ns)
{
	int64_t end = rtl_now_ns() + ns;

	do {
		for (unsigned int i = 0; i < POLLS_PER_CLOCK; i++)
			if (rtl_ready(r))
				return;
	} while (rtl_now_ns() < end);
}

int rtl_wait(struct rtl_ring *r, int64_t timeout_ns)
{
	int ret = rtl_submit(r);

	if (ret < 0 && !rtl_is_shortage(ret))
		return ret;
	if (has_events(r) || r->waiting.head)
		return 0;
	if (ret < 0 && timeout_ns > RTL_SHORTAGE_NS)
		timeout_ns = RTL_SHORTAGE_NS;
	return r->backend->wait(r, timeout_ns);
}
