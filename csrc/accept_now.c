/* SPDX-License-Identifier: MIT */
/*
 * accept4(2) that does not block, of a listener that may.
 *
 * It has no flag for that, and O_NONBLOCK belongs to the open file: where other
 * processes share the listener, to set it would make their accept(2) fail. Nor
 * does it help to ask poll(2) first: another process may take the connection in
 * between, and accept4(2) would stop this thread until the next one comes.
 *
 * So a timer interrupts it by a signal to this thread, after a millisecond and
 * then again and again: the first may come before accept4(2) has begun. What
 * the signal meets is either a connection or -EINTR, so no connection is lost.
 * The signal is rare: it comes only if another process has won that race. It
 * is the last of the real-time signals that nobody has a handler for, chosen
 * anew each time: whoever wants it for itself later gets it.
 *
 * Only listeners without O_NONBLOCK pay for this: some two microseconds.
 */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

#define PATIENCE_NS 1000000

/* timer_create(2) has this name, and so has musl, but not glibc. */
#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

static void on_signal(int signal)
{
	(void)signal;
}

/* 0: there is none. Threads that choose at once choose the same. */
static int choose_signal(void)
{
	struct sigaction action = { .sa_handler = on_signal }, old;

	for (int n = SIGRTMAX; n >= SIGRTMIN; n--) {
		if (sigaction(n, NULL, &old))
			continue;
		if (old.sa_handler == on_signal)
			return n;
		if (old.sa_handler == SIG_DFL && !sigaction(n, &action, NULL))
			return n;
	}
	return 0;
}

static int accept_with_timer(int fd, int number)
{
	struct sigevent event = {
		.sigev_notify = SIGEV_THREAD_ID,
		.sigev_signo = number,
		.sigev_notify_thread_id = gettid(),
	};
	struct itimerspec often = {
		.it_interval = { .tv_nsec = PATIENCE_NS },
		.it_value = { .tv_nsec = PATIENCE_NS },
	};
	timer_t timer;
	int result;

	if (timer_create(CLOCK_MONOTONIC, &event, &timer))
		return -ENOMEM;	/* there may be too many signals queued */
	result = rtl_result(timer_settime(timer, 0, &often, NULL));
	if (!result)
		result = rtl_result(accept4(fd, NULL, NULL, SOCK_CLOEXEC));
	timer_delete(timer);
	return result == -EINTR ? -EAGAIN : result;
}

static int accept_interruptibly(int fd)
{
	int number = choose_signal(), result;
	sigset_t ours, before;

	if (!number)
		return -ENOSYS;
	sigemptyset(&ours);
	sigaddset(&ours, number);
	pthread_sigmask(SIG_UNBLOCK, &ours, &before);
	result = accept_with_timer(fd, number);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return result;
}

/* The descriptor of a connection, or -errno; -EAGAIN: there is none now. */
int rtl_accept_now(int fd)
{
	struct pollfd listener = { .fd = fd, .events = POLLIN };
	int mode = fcntl(fd, F_GETFL);

	if (mode < 0)
		return -errno;
	if (mode & O_NONBLOCK)
		return rtl_result(accept4(fd, NULL, NULL, SOCK_CLOEXEC));
	if (poll(&listener, 1, 0) <= 0)
		return -EAGAIN;
	return accept_interruptibly(fd);
}
