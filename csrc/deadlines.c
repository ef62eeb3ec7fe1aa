/* SPDX-License-Identifier: MIT */
/*
 * Which of the requests must end first, for epoll, where the kernel keeps no
 * deadlines of requests. This is a pairing heap with its nodes in the requests:
 * so to set a deadline takes no memory, and can't fail.
 */
#include "internal.h"

static void place(struct rtl_request **link, struct rtl_request *req)
{
	*link = req;
	if (req)
		req->at.epoll.link = link;
}

/* Two heaps, each without siblings, become one. */
static struct rtl_request *meld(struct rtl_request *a, struct rtl_request *b)
{
	if (!a || !b)
		return a ? a : b;
	if (b->at.epoll.limit_ns < a->at.epoll.limit_ns) {
		struct rtl_request *later = a;

		a = b;
		b = later;
	}
	place(&b->at.epoll.sibling, a->at.epoll.child);
	place(&a->at.epoll.child, b);
	return a;
}

static struct rtl_request *cut_first(struct rtl_request **list)
{
	struct rtl_request *first = *list;

	if (first) {
		*list = first->at.epoll.sibling;
		first->at.epoll.sibling = NULL;
	}
	return first;
}

/* Two by two, then all: that is what keeps the heap flat. */
static struct rtl_request *meld_all(struct rtl_request *list)
{
	struct rtl_request *pairs = NULL, *heap = NULL, *pair;

	while (list) {
		pair = cut_first(&list);
		pair = meld(pair, cut_first(&list));
		pair->at.epoll.sibling = pairs;
		pairs = pair;
	}
	while (pairs)
		heap = meld(heap, cut_first(&pairs));
	return heap;
}

void rtl_deadline_set(struct rtl_ring *r, struct rtl_request *req, int64_t ns)
{
	req->at.epoll.timed = true;
	req->at.epoll.limit_ns = ns;
	req->at.epoll.child = req->at.epoll.sibling = NULL;
	place(&r->first_to_expire, meld(r->first_to_expire, req));
}

void rtl_deadline_clear(struct rtl_ring *r, struct rtl_request *req)
{
	if (!req->at.epoll.timed)
		return;
	req->at.epoll.timed = false;
	place(req->at.epoll.link, req->at.epoll.sibling);
	place(&r->first_to_expire, meld(r->first_to_expire,
					meld_all(req->at.epoll.child)));
}
