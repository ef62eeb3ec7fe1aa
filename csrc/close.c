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
 * sent: from then on an RST can't hurt what is ours. Expedited, because the
 * ring's owner wants to end, it does not wait for more than that.
 *
 * Who closes the number: the caller until the release, the engine from then on.
 * A close request that has ended after that has closed it, though its event may
 * not have been looked at. When the ring fails, rtl_fail() closes what is left.
 * Before the release a close can be cancelled, which resets the connection.
 */
#include <errno.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "internal.h"

#define MOMENT_NS (RTL_NS_PER_SECOND / 50)

static bool is_close(const struct rtl_request *req)
{
	return req->op == &rtl_close_operation;
}

static bool others(const struct rtl_ring *r, const struct rtl_request *req,
		   bool ends_at_close_only)
{
	const struct rtl_request *o;

	for (o = r->fds[req->fd].requests; o; o = o->fd_next)
		if (o != req && o->state != RTL_ENDED &&
		    (!ends_at_close_only ||
		     o->op->life == RTL_ENDS_AT_CLOSE))
			return true;
	return false;
}

static bool all_acknowledged(int fd)
{
	int unacknowledged = 0;

	return ioctl(fd, SIOCOUTQ, &unacknowledged) || !unacknowledged;
}

/*
 * True if the peer's TCP has not acknowledged all, and may lose the rest: input
 * that comes after close(2) is answered by an RST. None comes after its FIN.
 */
static bool may_lose_data(const struct rtl_request *req)
{
	int protocol = 0, fd = req->fd;
	socklen_t len = sizeof(protocol);

	return !req->u.close.at_eof &&
	       !getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &len) &&
	       protocol == IPPROTO_TCP && !all_acknowledged(fd);
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

/* Go on, if nothing is in the way: discard input, or close. */
static void step(struct rtl_ring *r, struct rtl_request *req)
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
	result = may_lose_data(req);
	r->backend->leave_fd(r, req->fd);
	error = rtl_close_now(req->fd);
	rtl_end(r, req, error ? error : result);
}

/* MSG_TRUNC: TCP throws the input away without copying it. */
static void close_prepare(const struct rtl_ring *r,
			  const struct rtl_request *req,
			  struct io_uring_sqe *sqe)
{
	io_uring_prep_recv(sqe, req->fd, r->trash, RTL_TRASH_SIZE, MSG_TRUNC);
}

static int close_attempt(struct rtl_ring *r, struct rtl_request *req,
			 struct rtl_completion *c)
{
	(void)c;
	return rtl_result(recv(req->fd, r->trash, RTL_TRASH_SIZE,
			       MSG_TRUNC | MSG_DONTWAIT));
}

/* Until the deadline; expedited, just a moment. */
static int64_t close_limit(const struct rtl_ring *r,
			   const struct rtl_request *req)
{
	int64_t moment;

	if (!r->expedited)
		return req->deadline_ns;
	moment = rtl_now_ns() + MOMENT_NS;
	return req->deadline_ns >= 0 && req->deadline_ns < moment ?
	       req->deadline_ns : moment;
}

static bool input_has_ended(const struct rtl_ring *r,
			    const struct rtl_request *req, int result)
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

static void close_complete(struct rtl_ring *r, struct rtl_request *req,
			   const struct rtl_completion *c, struct rtl_events *e)
{
	(void)e;
	if (req->cancelling) {
		rtl_end(r, req, -ECANCELED);
		return;
	}
	req->state = RTL_PARKED;
	if (c->result > 0)
		req->u.close.seen += (uint64_t)c->result;
	else if (rtl_is_passing(c->result))
		req->tries++;
	req->u.close.at_eof = !c->result;
	req->u.close.at_end = input_has_ended(r, req, c->result);
	step(r, req);
}

/* Before the release only: the connection is reset. */
static void close_cancel(struct rtl_ring *r, struct rtl_request *req)
{
	if (req->u.close.released)
		return;
	req->cancelling = true;
	rtl_reset(req->fd);
	if (req->state == RTL_PARKED)
		rtl_end(r, req, -ECANCELED);
	else
		rtl_request_cancel(r, req);
}

const struct rtl_operation rtl_close_operation = {
	.kernel_opcode = IORING_OP_LINK_TIMEOUT, /* what else it does is RECV */
	.awaits = POLLIN,
	.prepare = close_prepare,
	.attempt = close_attempt,
	.limit = close_limit,
	.complete = close_complete,
	.cancel = close_cancel,
	.fd_changed = step,
};

static bool is_being_closed(const struct rtl_ring *r, int fd)
{
	const struct rtl_request *o = NULL;

	if (fd >= 0 && (size_t)fd < r->fds_size)
		o = r->fds[fd].requests;
	while (o && (!is_close(o) || o->cancelling || o->state == RTL_ENDED))
		o = o->fd_next;
	return o;
}

static void cancel_others(struct rtl_ring *r, const struct rtl_request *req,
			  enum rtl_life life)
{
	struct rtl_request *o, *next;

	for (o = r->fds[req->fd].requests; o; o = next) {
		next = o->fd_next;
		if (o->op->life == life)
			rtl_cancel(r, o->id);
	}
}

int rtl_close(struct rtl_ring *r, uint64_t id, int fd, uint64_t discard_limit,
	      int64_t deadline_ns)
{
	struct rtl_request *req;
	int error;

	if (is_being_closed(r, fd))
		return -EALREADY;
	error = rtl_table_add(r, id, &rtl_close_operation, fd, &req);
	if (error)
		return error;
	req->state = RTL_PARKED;
	req->deadline_ns = deadline_ns;
	req->u.close.limit = discard_limit;
	cancel_others(r, req, RTL_ENDS_AT_CLOSE);
	step(r, req);
	return 0;
}

int rtl_release(struct rtl_ring *r, uint64_t close_id)
{
	struct rtl_request *req = rtl_table_find(r, close_id);

	if (!req || !is_close(req) || req->cancelling)
		return -ENOENT;
	req->u.close.released = true;
	req->u.close.seen = 0;
	cancel_others(r, req, RTL_ENDS_AT_RELEASE);
	step(r, req);
	return 0;
}

void rtl_expedite_close(struct rtl_ring *r)
{
	r->expedited = true;
	for (size_t i = 0; i < r->table_size; i++) {
		struct rtl_request *req = r->table[i];

		if (req && is_close(req) && req->state == RTL_IN_FLIGHT)
			rtl_want_cancel(r, req);
	}
}

void rtl_fail(struct rtl_ring *r)
{
	r->backend->discard(r);
	for (size_t i = 0; i < r->table_size; i++) {
		struct rtl_request *req = r->table[i];

		if (!req || !is_close(req) || req->state == RTL_ENDED ||
		    !req->u.close.released)
			continue;
		if (req->state == RTL_QUEUED)
			rtl_unqueue(r, req);
		r->backend->leave_fd(r, req->fd);
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
