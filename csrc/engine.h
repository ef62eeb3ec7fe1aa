/* SPDX-License-Identifier: MIT */
/*
 * The completion engine: what lies between Python and the kernel.
 *
 * io_uring(7) in short: a program writes requests (SQEs) into the submission
 * queue, which it shares with the kernel, and one system call hands them all
 * over. The kernel answers each by a CQE in the completion queue, with what the
 * system call of the same name would have returned. Until then it may read or
 * write the memory of the request. A multishot request is answered again and
 * again. A receive may take its memory from a pool of buffers, of which the
 * kernel chooses one when something has come. Where io_uring is forbidden the
 * same requests are kept here, and tried when epoll(7) says that their
 * descriptor is ready.
 *
 * Rules, and the module that keeps each:
 *
 *  1. A request is in the table from the call that makes it until its last
 *     event (table.c). The caller chooses its id, and never uses an id again.
 *  2. A call never fails because the submission queue is full. Requests wait
 *     in a FIFO until rtl_submit() finds room for them (request.c).
 *  3. Buffers of the receive pool are the kernel's, except those lent to the
 *     caller by rtl_reap(), which go back at the next rtl_reap() or
 *     rtl_submit() (pool.c).
 *  4. What was written to an outbox is sent in order, one send at a time, and
 *     a send that ends short goes on where it ended (outbox.c).
 *  5. A file descriptor handed to rtl_close() and released is the engine's,
 *     which closes it after the last request on it has ended. Until it is
 *     released it is the caller's. So nobody else ever closes it (close.c).
 *  6. Only the thread that made a ring may use it.
 *  7. A cancellation or a deadline that meets its request on the way between
 *     two queues of the kernel is lost. So their answers are looked at, and
 *     they are repeated until the request ends (uring.c).
 *  8. No call blocks but rtl_wait() and rtl_busy_poll(), whatever the mode of
 *     a descriptor, which stays as it is (epoll.c).
 *
 * Functions return 0 or a count, or -errno.
 *
 * A deadline is a time of CLOCK_MONOTONIC in nanoseconds, or RTL_NO_DEADLINE.
 * At it the kernel is asked to end the request, as by rtl_cancel(): so a
 * request that is past its deadline has tried once, and may have succeeded.
 */
#ifndef RTL_ENGINE_H
#define RTL_ENGINE_H

#include <stdint.h>

#define RTL_NO_DEADLINE (-1)

struct rtl_ring;

enum rtl_opcode {
	RTL_RECV = 1,
	RTL_RECV_INTO,
	RTL_SEND,
	RTL_ACCEPT,
	RTL_CONNECT,
	RTL_POLL,
	RTL_CLOSE,
	RTL_RECV_MULTISHOT,
	RTL_OUTBOX,
};

/* Opening and freeing */

/*
 * By what requests meet the kernel. With io_uring(7): who runs what the kernel
 * has to do to complete a request, and when.
 */
enum rtl_engine {
	RTL_DEFERRED,		/* rtl_reap() and rtl_wait(), when called */
	RTL_COOPERATIVE,	/* the thread's next system call, whichever */
	RTL_EPOLL,		/* epoll(7), and calls that do not block */
};

/*
 * Open a ring with queues of so many entries, which only io_uring has, and a
 * pool of so many buffers of so many bytes; entries and buffers are powers of
 * two. The eventfd is the caller's, and must stay open and non-blocking as long
 * as the ring lives.
 *
 * -EINVAL: the submission queue has less than two entries. -ENOMEM: memory is
 * short, or memory that may be locked: a smaller ring may do. Other errors:
 * io_uring_setup(2), io_uring_register(2), epoll_create1(2), timerfd_create(2).
 */
int rtl_open(struct rtl_ring **out, int eventfd, unsigned int sq_entries,
	     unsigned int cq_entries, unsigned int buffers,
	     unsigned int buffer_size, enum rtl_engine engine);

/*
 * Free a ring, and set the pointer to NULL. With NULL nothing is done: a caller
 * that was interrupted behind the call repeats it. -EBUSY, and nothing is freed,
 * while it has requests or borrowed segments: the kernel may use their memory.
 */
int rtl_free(struct rtl_ring **ring);

/*
 * Give up a ring that has failed: descriptors that were released are closed
 * now, if they are not yet, and connections that were accepted but not reported.
 * The others stay the caller's. Only rtl_free(), rtl_abandon() and
 * rtl_counters() may follow.
 */
void rtl_fail(struct rtl_ring *r);

/*
 * Close what a ring that has failed has open itself, and set the pointer to
 * NULL, with which nothing is done: the kernel drops its requests, and sockets
 * that only they still held. What was accepted since the failure is closed. All
 * its memory stays, as the kernel may still use that. Only rtl_counters() may
 * follow.
 */
void rtl_abandon(struct rtl_ring **ring);

/* 1 if the kernel knows the operation, 0 if not. */
int rtl_supports(struct rtl_ring *r, enum rtl_opcode opcode);

/* Where the pool's buffers are, one after the other, by their number. */
void *rtl_pool(const struct rtl_ring *r);

struct rtl_counters {
	uint64_t submitted;	/* SQEs, or requests, that were taken */
	uint64_t completed;	/* CQEs, or answers, seen */
	uint64_t retries;	/* requests issued again (-ENOBUFS, -EAGAIN) */
	uint64_t cq_overflows;	/* times the CQ was seen overflown */
	uint64_t in_flight;	/* requests in the table */
	uint64_t idle;		/* outboxes among them that are empty */
	uint64_t control_in_flight; /* cancellations and deadlines out */
	uint64_t bytes_sent;
	uint64_t bytes_received;
	uint64_t buffers_lent;
	uint64_t buffers;
	uint64_t buffer_size;
	uint64_t sq_entries;
	uint64_t cq_entries;
	uint64_t features;	/* IORING_FEAT_* */
};

void rtl_counters(const struct rtl_ring *r, struct rtl_counters *out);

/* Bytes sent and received since the ring was opened. */
uint64_t rtl_moved(const struct rtl_ring *r);

/*
 * Requests. Each call makes one, which goes to the kernel at the next
 * rtl_submit(), and ends by an event of the kind RTL_OVER. What that has as its
 * result is said here; -ECANCELED after rtl_cancel() or at the deadline, if
 * nothing was done. Memory that is passed is the kernel's until then.
 *
 * -EBADF: there is no such descriptor. -ENOMEM: memory is short.
 */

/*
 * Receive up to len bytes once, into the pool: what came has an event of its
 * own, before the last. The result is how much; 0: the input has ended.
 * io_uring_prep_recv(3), recv(2).
 */
int rtl_recv(struct rtl_ring *r, uint64_t id, int fd, unsigned int len);

/* The same into memory of the caller's. */
int rtl_recv_into(struct rtl_ring *r, uint64_t id, int fd, void *buf,
		  unsigned int len);

/*
 * Receive into the pool again and again, each time with an event, until the
 * input has ended (the result is 0), it failed, or it was cancelled.
 * io_uring_prep_recv_multishot(3).
 */
int rtl_recv_multishot(struct rtl_ring *r, uint64_t id, int fd);

/*
 * Send. The result is how much was sent, which is less than len only if it was
 * interrupted: by a cancellation or the deadline. Where the connection breaks,
 * or its output is shut down, it is the error, though a part may have been
 * sent. io_uring_prep_send(3), send(2).
 */
int rtl_send(struct rtl_ring *r, uint64_t id, int fd, const void *buf,
	     unsigned int len, int64_t deadline_ns);

/*
 * Accept a connection, for as long as it takes, whether or not the listener has
 * O_NONBLOCK. The result is its descriptor, close-on-exec, which is the
 * caller's. io_uring_prep_accept(3), accept(2).
 */
int rtl_accept(struct rtl_ring *r, uint64_t id, int fd);

/*
 * Connect to a struct sockaddr of len bytes. The result is 0.
 * io_uring_prep_connect(3), connect(2).
 */
int rtl_connect(struct rtl_ring *r, uint64_t id, int fd, const void *address,
		unsigned int len);

/*
 * Wait until one of the mask's conditions holds. The result is those that do.
 * With an empty mask this is a timer: it ends with -ECANCELED, at the deadline.
 * io_uring_prep_poll_add(3), poll(2).
 */
int rtl_poll(struct rtl_ring *r, uint64_t id, int fd, unsigned int mask,
	     int64_t deadline_ns);

/*
 * Ask for a request's end, which comes as its last event; that may have another
 * result if it was done first. Of a close that was released, nothing happens.
 *
 * -ENOENT: there is none with that id, or its last event was reported.
 */
int rtl_cancel(struct rtl_ring *r, uint64_t id);

/* Ending a connection */

/*
 * Prepare to close a descriptor. Receives, accepts, connects and polls on it
 * are cancelled, its input is thrown away. It stays the caller's, who shuts
 * down its output or resets it, and then releases it. Input is thrown away
 * until the peer's end, until discard_limit bytes after the release, or to the
 * deadline. The result is 0; 1 if the peer, which has not ended, had not
 * acknowledged all by then; or the error of close(2).
 *
 * Cancelled before the release it resets the connection and ends with
 * -ECANCELED; the descriptor stays the caller's.
 *
 * -EALREADY: a close of this descriptor has begun.
 */
int rtl_close(struct rtl_ring *r, uint64_t id, int fd, uint64_t discard_limit,
	      int64_t deadline_ns);

/*
 * The descriptor of a close is the engine's from now on. It may be closed
 * before this returns. An outbox that it still has is cancelled.
 *
 * -ENOENT: there is no such close, or it was cancelled. The descriptor stays
 * the caller's.
 */
int rtl_release(struct rtl_ring *r, uint64_t close_id);

/* From now on closes wait only until the peer's TCP has all we sent. */
void rtl_expedite_close(struct rtl_ring *r);

/*
 * End a connection so that the peer can't mistake it for an orderly end: RST,
 * now, even while requests hold the socket (connect(2), AF_UNSPEC). The
 * descriptor stays open, and the caller's.
 */
int rtl_reset(int fd);

/* close(2), which SO_LINGER does not make wait (socket(7)). */
int rtl_close_now(int fd);

/* Sending what a stream writes */

/*
 * Open an outbox, a request that lasts: it is over when it was shut down (the
 * result is 0), when a send failed, or when it was cancelled. What is in it
 * then is dropped.
 */
int rtl_outbox_open(struct rtl_ring *r, uint64_t id, int fd);

/*
 * Have bytes sent behind all that was written before. Returns how many are now
 * unsent. They are copied; or with a segment_id, from the same numbers as the
 * ids of requests, sent now as far as the socket takes them, and else borrowed:
 * if any are unsent, they are the engine's until an event RTL_OVER for that id.
 *
 * -ENOENT: it is over, as its event says or has said. -EPIPE: it was cancelled
 * or shut down. -ENOMEM: memory is short. The bytes stay the caller's. Other
 * errors, and -EPIPE, are those of send(2): the connection is broken, which the
 * kernel may tell but once: input then reads as ended. The outbox stays.
 */
int64_t rtl_outbox_write(struct rtl_ring *r, uint64_t id, const void *buf,
			 unsigned int len, uint64_t segment_id);

/*
 * Returns how many bytes are unsent. If that is not less than below, there will
 * be one event RTL_PROGRESS when it is; asked again before, when it is less
 * than the larger of the two. -ENOENT: the outbox is over.
 */
int64_t rtl_outbox_notify_below(struct rtl_ring *r, uint64_t id,
				uint64_t below);

/*
 * Send what is unsent, until the deadline, and end the outbox; what the socket
 * takes at once is sent now, past the deadline too.
 *
 * 1: an event will tell. 0: all is sent. -errno: it is over, but not all could
 * be sent (-ETIMEDOUT: not until the deadline). After 0 and -errno no event
 * comes, and the outbox is gone. -ENOENT: it was gone before, as its event says.
 *
 * The caller shuts down the socket's output next: until then the kernel may
 * hold back the last bytes (MSG_MORE).
 */
int rtl_outbox_shutdown(struct rtl_ring *r, uint64_t id, int64_t deadline_ns);

/* Driving */

/*
 * An event is RTL_EVENT_FIELDS numbers. Its kind is the number of the buffer of
 * the pool that has what was received, RTL_OVER when the request is over (or
 * the segment), or RTL_PROGRESS when an outbox has as little left as asked for.
 */
enum rtl_event_field { RTL_ID, RTL_RESULT, RTL_KIND, RTL_EVENT_FIELDS };

#define RTL_OVER (-1)
#define RTL_PROGRESS (-2)

/*
 * Hand all requests over. Returns how many SQEs, or requests, that were.
 * -EAGAIN, -EBUSY or -ENOMEM: not all; call again after rtl_reap(). Other
 * errors, here and of the calls below: the ring has failed (rtl_fail()).
 * io_uring_enter(2), epoll_ctl(2).
 */
int rtl_submit(struct rtl_ring *r);

/*
 * Write up to max_events events, at least two. Returns how many; call again
 * until it is none. The buffers they name are the caller's until the next call,
 * or rtl_submit(). io_uring_get_events(3), epoll_wait(2).
 */
int rtl_reap(struct rtl_ring *r, int64_t *events, unsigned int max_events);

/*
 * From now on a completion makes the descriptor to sleep on readable, until
 * rtl_reap(). What is there already does so at once, but for sends that nobody
 * need be told of. Returns 0. eventfd(2), timerfd_settime(2).
 */
int rtl_arm(struct rtl_ring *r);

/*
 * The descriptor to sleep on. It is readable, too, when the eventfd is, and
 * until rtl_clear().
 */
int rtl_sleep_fd(const struct rtl_ring *r);

/* Read the eventfd, so that it is unreadable. */
void rtl_clear(const struct rtl_ring *r);

/* True when rtl_reap() may find something. */
int rtl_ready(struct rtl_ring *r);

/* Stay here until rtl_ready(): so many nanoseconds at most. */
void rtl_busy_poll(struct rtl_ring *r, int64_t ns);

/*
 * Submit, then sleep until there may be an event (0), so many nanoseconds at
 * most (-ETIME), or until a signal's handler has run (-EINTR). In a shortage no
 * longer than a moment: the caller reaps and comes again.
 * io_uring_wait_cqes(3), epoll_wait(2).
 */
int rtl_wait(struct rtl_ring *r, int64_t timeout_ns);

#endif
