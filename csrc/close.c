/* SPDX-License-Identifier: MIT */
/*
 * Closing a connection so that what was sent arrives.
 *
 * close(2) over unread input makes the kernel send RST, and that can destroy
 * data which the peer has not read yet. So a close request
 *
 *   - cancels what waits for input on its fd,
 *   - reads and throws away what comes, from the start (a peer that is itself
 *     blocked in a send would else never read our last bytes),
 *   - and closes the fd when three things are true: the caller has released
 *     it (its FIN or reset is out), the input has ended, and no other request
 *     on the fd is in flight.
 *
 * The input has ended at EOF, at an error, at the deadline, or when after the
 * release `limit` bytes have come and the peer's TCP has acknowledged all we
 * sent: from then on an RST can't hurt what is ours. A ring in a hurry, because
 * its owner wants to end, does not wait for more than that acknowledgement.
 *
 * Who closes the number: the caller until the release, the engine from then on.
 * A close request that has ended after that has closed it, though its event may
 * not have been looked at. When the ring fails, rtl_fail() closes what is left.
 * Before the release a close can be cancelled, which resets the connection.
 */
#include <errno.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

#define MOMENT_NS (RTL_NS_PER_SECOND / 50)

static bool is_read(const struct rtl_request *req)
{
	return req->opcode == RTL_RECV || req->opcode == RTL_RECV_INTO ||
	       req->opcode == RTL_RECV_MULTISHOT || req->opcode == RTL_POLL ||
	       req->opcode == RTL_ACCEPT || req->opcode == RTL_CONNECT;
}

static bool others(const struct rtl_ring *r, const struct rtl_request *req,
		   bool reads_only)
{
	const struct rtl_request *o;

	for (o = r->by_fd[req->fd]; o; o = o->fd_next)
		if (o != req && o->state != RTL_ENDED &&
		    (!reads_only || is_read(o)))
			return true;
	return false;
}

static bool all_acknowledged(int fd)
{
	int unacknowledged = 0;

	return ioctl(fd, SIOCOUTQ, &unacknowledged) || !unacknowledged;
}

/* After close(2) an RST, the answer to more input, would destroy the rest. */
static bool may_lose_data(int fd)
{
	int protocol = 0;
	socklen_t len = sizeof(protocol);

	return !getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &len) &&
	       protocol == IPPROTO_TCP && !all_acknowledged(fd);
}

static int64_t ns_of(const struct __kernel_timespec *ts)
{
	return ts->tv_sec * RTL_NS_PER_SECOND + ts->tv_nsec;
}

int64_t rtl_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * RTL_NS_PER_SECOND + now.tv_nsec;
}

/* Without a deadline there is always time. */
bool rtl_is_past(const struct rtl_request *req)
{
	return req->timed && rtl_now_ns() >= ns_of(&req->deadline);
}

/*
 * How long to wait for input: to the deadline, or just a moment in a hurry.
 * NULL: as long as it takes.
 */
struct __kernel_timespec *rtl_close_limit(const struct rtl_ring *r,
					  struct rtl_request *req)
{
	int64_t moment = r->expedited ? rtl_now_ns() + MOMENT_NS : INT64_MAX;

	if (req->timed && ns_of(&req->deadline) <= moment)
		return &req->deadline;
	if (!r->expedited)
		return NULL;
	req->u.close.until.tv_sec = moment / RTL_NS_PER_SECOND;
	req->u.close.until.tv_nsec = moment % RTL_NS_PER_SECOND;
	return &req->u.close.until;
}

static bool has_ended(const struct rtl_ring *r, const struct rtl_request *req,
		      int result)
{
	bool again = result == -ECANCELED ||
		     (rtl_is_passing(result) && req->tries < RTL_MAX_TRIES);

	if (rtl_is_past(req))
		return true;
	if (result <= 0 && !again)
		return true;
	return (r->expedited || req->u.close.seen >= req->u.close.limit) &&
	       req->u.close.released && all_acknowledged(req->fd);
}

/*
 * close(2), but the owner's SO_LINGER must not make it wait here: its seconds
 * are taken away, the kernel sends what is left all the same. A reset at the
 * close, which SO_LINGER with no seconds asks for, stays.
 */
int rtl_close_now(int fd)
{
	struct linger linger;
	socklen_t len = sizeof(linger);

	if (!getsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, &len) &&
	    linger.l_onoff && linger.l_linger) {
		linger.l_onoff = 0;
		setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, len);
	}
	return close(fd) ? -errno : 0;
}

void rtl_close_step(struct rtl_ring *r, struct rtl_request *req)
{
	int result, error;

	if (req->state != RTL_PARKED)
		return;
	if (!req->u.close.at_end) {
		if (!others(r, req, true))
			rtl_queue(r, req);
		return;
	}
	if (!req->u.close.released || others(r, req, false))
		return;
	result = may_lose_data(req->fd);
	error = rtl_close_now(req->fd);
	rtl_end(r, req, error ? error : result);
}

void rtl_close_cancel(struct rtl_ring *r, struct rtl_request *req)
{
	if (req->u.close.released || req->cancelling)
		return;
	req->cancelling = true;
	rtl_reset(req->fd);
	if (req->state == RTL_IN_FLIGHT) {
		rtl_want_cancel(r, req);
		return;
	}
	if (req->state == RTL_QUEUED)
		rtl_fifo_remove(&r->queued, req);
	rtl_end(r, req, -ECANCELED);
}

/* A receive of this close request has ended. */
void rtl_close_discarded(struct rtl_ring *r, struct rtl_request *req, int result)
{
	if (req->cancelling) {
		rtl_end(r, req, -ECANCELED);
		return;
	}
	req->state = RTL_PARKED;
	if (result > 0)
		req->u.close.seen += (uint64_t)result;
	else if (rtl_is_passing(result))
		req->tries++;
	req->u.close.at_end = has_ended(r, req, result);
	rtl_close_step(r, req);
}

/* Some request on the fd has ended: a close may have waited for it. */
void rtl_close_fd_event(struct rtl_ring *r, int fd)
{
	struct rtl_request *req, *next;

	for (req = r->by_fd[fd]; req; req = next) {
		next = req->fd_next;
		if (req->opcode == RTL_CLOSE)
			rtl_close_step(r, req);
	}
}

int rtl_close(struct rtl_ring *r, uint64_t id, int fd, uint64_t discard_limit,
	      int64_t deadline_ns)
{
	struct rtl_request *req, *o, *next;
	int error = rtl_table_add(r, id, RTL_CLOSE, fd, &req);

	if (error)
		return error;
	req->state = RTL_PARKED;
	req->u.close.limit = discard_limit;
	rtl_set_deadline(req, deadline_ns);
	for (o = r->by_fd[fd]; o; o = next) {
		next = o->fd_next;
		if (is_read(o))
			rtl_cancel(r, o->id);
	}
	rtl_close_step(r, req);
	return 0;
}

int rtl_release(struct rtl_ring *r, uint64_t close_id)
{
	struct rtl_request *req = rtl_table_find(r, close_id);
	struct rtl_request *o, *next;

	if (!req || req->opcode != RTL_CLOSE || req->cancelling)
		return -ENOENT;
	req->u.close.released = true;
	req->u.close.seen = 0;
	for (o = r->by_fd[req->fd]; o; o = next) {
		next = o->fd_next;
		if (o->opcode == RTL_OUTBOX)
			rtl_cancel(r, o->id);	/* its owner lost it */
	}
	rtl_close_step(r, req);
	return 0;
}

/* From now on no close waits longer than it must for its data to be safe. */
void rtl_expedite_close(struct rtl_ring *r)
{
	r->expedited = true;
	for (size_t i = 0; i < r->table_size; i++) {
		struct rtl_request *req = r->table[i];

		if (req && req->opcode == RTL_CLOSE && req->state == RTL_IN_FLIGHT)
			rtl_want_cancel(r, req);
	}
}

/*
 * The ring is given up, nothing will be reaped any more. Only rtl_free() may
 * follow; it refuses as long as requests are in flight.
 */
void rtl_fail(struct rtl_ring *r)
{
	for (size_t i = 0; i < r->table_size; i++) {
		struct rtl_request *req = r->table[i];

		if (!req || req->opcode != RTL_CLOSE || req->state == RTL_ENDED ||
		    !req->u.close.released)
			continue;
		if (req->state == RTL_QUEUED)
			rtl_fifo_remove(&r->queued, req);
		rtl_end(r, req, rtl_close_now(req->fd));
	}
}

/*
 * End a connection so that the peer can't mistake it for an orderly end: RST,
 * now, even while requests hold the socket (connect(2), AF_UNSPEC).
 */
int rtl_reset(int fd)
{
	struct sockaddr nowhere = { .sa_family = AF_UNSPEC };
	struct linger hard = { .l_onoff = 1, .l_linger = 0 };

	if (!connect(fd, &nowhere, sizeof(nowhere)))
		return 0;
	/* Not TCP, or a state that can't be dissolved: the close will do it. */
	if (setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard)))
		return -errno;
	return shutdown(fd, SHUT_RDWR) && errno != ENOTCONN ? -errno : 0;
}
