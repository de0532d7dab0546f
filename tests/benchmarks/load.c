/* The load client: many WebSockets or streams of server-sent events, and HTTP publishers on one epoll loop. Each line on stdin is a command,
 * answered by a line of JSON on stdout. load.py starts this program and documents the commands; load_fallback.py
 * replaces it if there is no compiler.
 *
 * It must cost far less than any server: frames are counted by their headers, payloads are searched only for an awaited
 * text or a time stamp, and nothing is allocated per frame.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define BUFFER (2 << 20) /* the longest frame */
#define DIGITS 19        /* of a time stamp, after an @ */

enum kind { COMMANDS, PACE, PATIENCE, CLIENT, POSTER };
enum state { CONNECTING, SHAKING, GREETING, LIVE };

struct client {
    enum kind kind;
    enum state state;
    int fd, index, stream;
    char *rest; /* the start of an incomplete frame */
    size_t rest_size;
    long got; /* frames since `expect` */
    int64_t begun;
};

struct poster {
    enum kind kind;
    int fd, busy;
    char *request; /* its own copy, because its time stamp differs */
    size_t sent, received, whole, head_size;
    int64_t begun;
    char head[1024];
};

struct samples {
    float *us;
    size_t size, room;
};

static int loop, pace, patience;
static char buffer[2 * BUFFER];

static struct client **clients; /* the reading clients */
static int live, room;
static struct { /* the `connect` in progress */
    int amount, port, at_once, deflate, stuck, begun, ended;
    char path[2048], until[64], hello[200];
    int64_t start;
    struct samples first, until_seen;
} dial;

static struct { /* since `expect` */
    long each, done, bytes, extra;
    int stamped, awaited;
    int64_t first, last;
    double cpu;
    struct samples latency;
} tally;

static struct { /* the publishers, and the `post` in progress */
    struct poster *all;
    char *request;
    size_t size, stamp; /* of the request; offset of its time stamp, 0 if none */
    int posters;
    int port;
    long amount, begun, ended, failed;
    double rate, cpu;
    int64_t start;
    struct samples answered;
} post;

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static double cpu(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return u.ru_utime.tv_sec + u.ru_stime.tv_sec + (u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static void fail(const char *what)
{
    printf("{\"error\":\"%.200s: %s\"}\n", what, errno ? strerror(errno) : "see above");
    fflush(stdout);
    exit(1);
}

static void watch(int operation, int fd, uint32_t events, void *who)
{
    struct epoll_event e = {.events = events, .data.ptr = who};
    if (epoll_ctl(loop, operation, fd, &e) < 0) fail("epoll_ctl");
}

static void set_timer(int fd, int flags, int64_t ns)
{
    struct itimerspec at = {.it_value = {ns / 1000000000, ns % 1000000000}};
    timerfd_settime(fd, flags, &at, NULL);
}

static void *grown(void *array, int *size, size_t item)
{
    *size = *size ? 2 * *size : 4096;
    return realloc(array, *size * item);
}

static void add(struct samples *s, int64_t ns)
{
    if (s->size == s->room) s->us = realloc(s->us, (s->room = s->room ? 2 * s->room : 4096) * sizeof *s->us);
    s->us[s->size++] = ns / 1e3f;
}

static int ascending(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Prints the samples in microseconds, and clears them. */
static void print_samples(const char *name, struct samples *s)
{
    size_t n = s->size;
    if (n) qsort(s->us, n, sizeof *s->us, ascending);
    printf("\"%s\":{\"count\":%zu,\"p50\":%.1f,\"p99\":%.1f,\"max\":%.1f}", name, n, n ? s->us[n / 2] : 0,
           n ? s->us[n * 99 / 100] : 0, n ? s->us[n - 1] : 0);
    s->size = 0;
}

static void answered(void)
{
    printf("}\n");
    fflush(stdout);
}

static int open_socket(int port, int stuck)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1, small = 4096;
    if (fd < 0) fail("socket");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    /* close by a reset, so that no port stays in TIME_WAIT */
    struct linger hard = {1, 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    if (stuck) setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    fcntl(fd, F_SETFL, O_NONBLOCK);
    if (connect(fd, (struct sockaddr *)&to, sizeof to) < 0 && errno != EINPROGRESS) fail("connect");
    return fd;
}

/* -- WebSocket clients -------------------------------------------------------------------------------------------- */

static void connect_more(void)
{
    while (dial.begun < dial.amount && dial.begun - dial.ended < dial.at_once) {
        struct client *c = calloc(1, sizeof *c);
        c->kind = CLIENT;
        c->index = dial.begun++;
        c->begun = now();
        c->fd = open_socket(dial.port, dial.stuck);
        watch(EPOLL_CTL_ADD, c->fd, EPOLLOUT, c);
    }
}

static int streaming(void) { return !strncmp(dial.path, "/events", 7); }

static void shake_hands(struct client *c)
{
    char text[4096], *mark = strstr(dial.path, "{}");
    int error = 0, before = mark ? mark - dial.path : (int)strlen(dial.path);
    socklen_t size = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if ((errno = error)) fail("connect");
    int n = snprintf(text, sizeof text, "GET %.*s", before, dial.path);
    if (mark) n += snprintf(text + n, sizeof text - n, "%d%s", c->index, mark + 2);
    if (streaming())
        n += snprintf(text + n, sizeof text - n, " HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n");
    else
        n += snprintf(text + n, sizeof text - n,
                      " HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                      "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%s\r\n",
                      dial.deflate ? "Sec-WebSocket-Extensions: permessage-deflate\r\n" : "");
    if (send(c->fd, text, n, MSG_NOSIGNAL) != n) fail("send");
    c->state = SHAKING;
    watch(EPOLL_CTL_MOD, c->fd, EPOLLIN, c);
}

static void say_hello(struct client *c)
{
    char frame[256] = {(char)0x81, (char)(0x80 | strlen(dial.hello))}; /* masked with zeros */
    strcpy(frame + 6, dial.hello);
    if (*dial.hello && send(c->fd, frame, strlen(dial.hello) + 6, MSG_NOSIGNAL) < 0) fail("send");
}

static void go_live(struct client *c, int64_t at)
{
    add(&dial.until_seen, at - c->begun);
    c->state = LIVE;
    if (dial.stuck) {
        epoll_ctl(loop, EPOLL_CTL_DEL, c->fd, NULL);
    } else {
        if (live == room) clients = grown(clients, &room, sizeof *clients);
        clients[live++] = c;
    }
    dial.ended++;
    connect_more();
    if (dial.ended == dial.amount) {
        printf("{\"seconds\":%.6f,", (at - dial.start) / 1e9);
        print_samples("first", &dial.first);
        printf(",");
        print_samples("until", &dial.until_seen);
        answered();
    }
}

static void print_tally(void)
{
    tally.awaited = 0;
    set_timer(patience, 0, 0);
    printf("{\"first\":%ld,\"last\":%ld,\"frames\":%ld,\"bytes\":%ld,\"extra\":%ld,\"cpu\":%.6f,", (long)tally.first,
           (long)tally.last, tally.done, tally.bytes, tally.extra, cpu() - tally.cpu);
    print_samples("latency", &tally.latency);
    answered();
}

static int complete(void) { return tally.done >= tally.each * live; }

static void take_message(struct client *c, const char *payload, size_t size, int64_t at)
{
    if (c->state == GREETING) {
        if (*dial.until == '*' || memmem(payload, size, dial.until, strlen(dial.until))) go_live(c, at);
        return;
    }
    if (c->got >= tally.each) {
        tally.extra++;
        return;
    }
    c->got++;
    tally.done++;
    if (!tally.first) tally.first = at;
    tally.last = at;
    if (tally.stamped) {
        const char *stamp = memchr(payload, '@', size);
        if (stamp && stamp + DIGITS < payload + size) add(&tally.latency, at - strtoll(stamp + 1, NULL, 10));
    }
}

/* Counts the complete frames in `data` (RFC 6455, unmasked) and returns their length in bytes. */
static size_t parse(struct client *c, const char *data, size_t size, int64_t at)
{
    size_t used = 0;
    while (size - used >= 2) {
        const unsigned char *h = (const unsigned char *)data + used;
        size_t length = h[1], header = length == 126 ? 4 : length == 127 ? 10 : 2;
        if (size - used < header) break;
        if (header > 2) length = 0;
        for (size_t i = 2; i < header; i++) length = length << 8 | h[i];
        if (header + length > BUFFER) fail("a frame is too long");
        if (size - used < header + length) break;
        if ((h[0] & 15) < 8) take_message(c, data + used + header, length, at);
        used += header + length;
    }
    return used;
}

/* Counts the complete messages in `data` (server-sent events, chunked) and returns their length in bytes. */
static size_t parse_stream(struct client *c, const char *data, size_t size, int64_t at)
{
    const char *line = data, *end;
    for (; (end = memchr(line, '\n', data + size - line)); line = end + 1)
        if (end - line > 6 && !memcmp(line, "data: ", 6)) take_message(c, line + 6, end - line - 6, at);
    return line - data;
}

static void receive(struct client *c)
{
    if (c->rest_size) memcpy(buffer, c->rest, c->rest_size);
    ssize_t n = recv(c->fd, buffer + c->rest_size, BUFFER, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) fail("the server closed a connection");
    int64_t at = now();
    size_t size = c->rest_size + n, used = 0;
    tally.bytes += n;
    if (c->state == SHAKING) {
        char *end = memmem(buffer, size, "\r\n\r\n", 4);
        if (end) {
            buffer[size] = 0;
            errno = 0;
            c->stream = streaming();
            if (strncmp(buffer, c->stream ? "HTTP/1.1 200" : "HTTP/1.1 101", 12)) fail("refused");
            if (dial.deflate && !strcasestr(buffer, "permessage-deflate")) fail("deflate was not agreed");
            used = end + 4 - buffer;
            c->state = GREETING;
            add(&dial.first, at - c->begun);
            say_hello(c);
            if (!*dial.until) go_live(c, at);
        }
    }
    if (c->state > SHAKING) used += (c->stream ? parse_stream : parse)(c, buffer + used, size - used, at);
    if (size - used > c->rest_size) c->rest = realloc(c->rest, size - used);
    c->rest_size = size - used;
    if (c->rest_size) memcpy(c->rest, buffer + used, c->rest_size);
    if (tally.awaited && complete()) print_tally();
}

/* -- HTTP publishers ---------------------------------------------------------------------------------------------- */

static int64_t due(void) { return post.start + (int64_t)(post.begun * 1e9 / post.rate); }

static void push(struct poster *p)
{
    if (!p->busy) { /* connected, nothing to send yet */
        watch(EPOLL_CTL_MOD, p->fd, EPOLLIN, p);
        return;
    }
    ssize_t n = send(p->fd, p->request + p->sent, post.size - p->sent, MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN) fail("post");
    p->sent += n > 0 ? n : 0;
    watch(EPOLL_CTL_MOD, p->fd, p->sent < post.size ? EPOLLIN | EPOLLOUT : EPOLLIN, p);
}

static void open_poster(struct poster *p)
{
    p->fd = open_socket(post.port, 0);
    watch(EPOLL_CTL_ADD, p->fd, EPOLLIN | EPOLLOUT, p);
}

/* A paced request is timed from when it was due, so that delays caused by a slow server count. */
static void publish(struct poster *p)
{
    p->begun = post.rate ? due() : now();
    post.begun++;
    p->busy = 1;
    p->sent = p->received = p->whole = p->head_size = 0;
    if (post.stamp) {
        char digits[DIGITS + 1];
        snprintf(digits, sizeof digits, "%0*ld", DIGITS, (long)p->begun);
        memcpy(p->request + post.stamp, digits, DIGITS);
    }
    if (p->fd < 0) open_poster(p);
    else push(p);
}

static void publish_more(void)
{
    for (int i = 0; i < post.posters && post.begun < post.amount; i++) {
        if (post.rate && due() > now()) {
            set_timer(pace, TFD_TIMER_ABSTIME, due());
            return;
        }
        if (!post.all[i].busy) publish(&post.all[i]);
    }
    /* a busy publisher sends its next request once it is answered */
    if (post.rate && post.begun < post.amount && due() > now()) set_timer(pace, TFD_TIMER_ABSTIME, due());
}

static void hear(struct poster *p)
{
    ssize_t n = recv(p->fd, buffer, BUFFER, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) { /* servers close a connection that was idle for seconds */
        if (p->busy) fail("the server closed a publisher's connection");
        close(p->fd);
        p->fd = -1;
        return;
    }
    p->received += n;
    if (!p->whole) {
        size_t kept = sizeof p->head - 1 - p->head_size;
        if ((size_t)n < kept) kept = n;
        memcpy(p->head + p->head_size, buffer, kept);
        p->head[p->head_size += kept] = 0;
        char *end = strstr(p->head, "\r\n\r\n"), *length = strcasestr(p->head, "\ncontent-length:");
        if (!end) return;
        p->whole = end + 4 - p->head + (length && length < end ? strtoul(length + 16, NULL, 10) : 0);
    }
    if (p->received < p->whole) return;
    add(&post.answered, now() - p->begun);
    if (p->head[9] != '2' && !post.failed++) fprintf(stderr, "refused: %s\n", p->head);
    p->busy = 0;
    if (++post.ended < post.amount) {
        publish_more();
        return;
    }
    printf("{\"begun\":%ld,\"seconds\":%.6f,\"requests\":%ld,\"failed\":%ld,\"cpu\":%.6f,", (long)post.start,
           (now() - post.start) / 1e9, post.ended, post.failed, cpu() - post.cpu);
    print_samples("latency", &post.answered);
    answered();
}

static void open_posters(void)
{
    post.all = calloc(post.posters, sizeof *post.all);
    for (int i = 0; i < post.posters; i++) {
        post.all[i].kind = POSTER;
        open_poster(&post.all[i]);
    }
}

static void load_request(const char *file)
{
    FILE *f = fopen(file, "rb");
    if (!f) fail(file);
    fseek(f, 0, SEEK_END);
    post.size = ftell(f);
    rewind(f);
    post.request = realloc(post.request, post.size);
    if (fread(post.request, 1, post.size, f) != post.size) fail(file);
    fclose(f);
    char *stamp = memchr(post.request, '@', post.size);
    post.stamp = stamp ? stamp + 1 - post.request : 0;
    for (int i = 0; i < post.posters; i++) {
        post.all[i].request = realloc(post.all[i].request, post.size);
        memcpy(post.all[i].request, post.request, post.size);
    }
}

/* -- commands ----------------------------------------------------------------------------------------------------- */

static const char *word(char **rest)
{
    char *found = strsep(rest, "\t");
    return !found || !strcmp(found, "-") ? "" : found;
}

static void obey(char *line)
{
    char file[1024];
    long milliseconds;
    if (sscanf(line, "connect %d %d %d %d %d", &dial.amount, &dial.port, &dial.at_once, &dial.deflate, &dial.stuck) == 5) {
        word(&line);
        snprintf(dial.path, sizeof dial.path, "%s", word(&line));
        snprintf(dial.until, sizeof dial.until, "%s", word(&line));
        snprintf(dial.hello, 126, "%s", word(&line));
        dial.begun = dial.ended = 0;
        dial.start = now();
        connect_more();
    } else if (sscanf(line, "expect %ld %d", &tally.each, &tally.stamped) == 2) {
        for (int i = 0; i < live; i++) clients[i]->got = 0;
        tally.done = tally.bytes = tally.extra = tally.first = tally.last = tally.latency.size = 0;
        tally.cpu = cpu();
        printf("{\"clients\":%d", live);
        answered();
    } else if (sscanf(line, "wait %ld", &milliseconds) == 1) {
        tally.awaited = 1;
        set_timer(patience, 0, milliseconds * 1000000);
        if (complete()) print_tally();
    } else if (sscanf(line, "posters %d %d", &post.posters, &post.port) == 2) {
        open_posters();
        printf("{\"posters\":%d", post.posters);
        answered();
    } else if (sscanf(line, "post %ld %lf %1023[^\n]", &post.amount, &post.rate, file) == 3) {
        load_request(file);
        post.begun = post.ended = post.failed = 0;
        post.cpu = cpu();
        post.start = now();
        publish_more();
    } else {
        errno = 0;
        fail(line);
    }
}

static void read_commands(void)
{
    static char text[8192];
    static size_t size;
    ssize_t n = read(0, text + size, sizeof text - 1 - size);
    if (n <= 0) exit(0);
    text[size += n] = 0;
    for (char *end; (end = strchr(text, '\n')); memmove(text, end + 1, (size -= end + 1 - text) + 1)) {
        *end = 0;
        obey(text);
    }
}

int main(void)
{
    static enum kind commands = COMMANDS, pacing = PACE, waiting = PATIENCE;
    struct epoll_event ready[256];
    uint64_t expirations;
    loop = epoll_create1(0);
    pace = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    patience = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    watch(EPOLL_CTL_ADD, 0, EPOLLIN, &commands);
    watch(EPOLL_CTL_ADD, pace, EPOLLIN, &pacing);
    watch(EPOLL_CTL_ADD, patience, EPOLLIN, &waiting);
    for (;;) {
        int n = epoll_wait(loop, ready, sizeof ready / sizeof *ready, -1);
        for (int i = 0; i < n; i++) {
            void *who = ready[i].data.ptr;
            switch (*(enum kind *)who) {
            case COMMANDS:
                read_commands();
                break;
            case PACE:
                if (read(pace, &expirations, sizeof expirations) > 0) publish_more();
                break;
            case PATIENCE:
                errno = ETIMEDOUT;
                fprintf(stderr, "%ld of %ld messages arrived\n", tally.done, tally.each * live);
                fail("timed out: a client has not received all messages");
                break;
            case CLIENT:
                if (((struct client *)who)->state == CONNECTING) shake_hands(who);
                else receive(who);
                break;
            case POSTER:
                if (ready[i].events & EPOLLOUT) push(who);
                if (ready[i].events & ~EPOLLOUT) hear(who);
                break;
            }
        }
    }
}
