/*
 * Traffic for the torture and the benchmark: as many packets as one core can
 * make, which Python cannot.  Used by lab/load.py; for network namespaces of
 * one's own only.
 *
 *   load knocks DESTINATION PORT TAG RATE SOURCE COUNT   knock-shaped garbage with a tag (8 hex digits),
 *                                                        from COUNT neighbouring addresses from SOURCE on
 *   load udp DESTINATION PORT SIZE RATE SOURCE COUNT     other datagrams, SIZE bytes of payload
 *   load sink PORT                                       counts the datagrams that arrive at PORT
 *
 * RATE is packets a second, 0 for as many as there can be.  All run until
 * SIGTERM and then print what they did as "COUNT SECONDS".
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum { BATCH = 32, MAX_PAYLOAD = 1400, KNOCK_LENGTH = 56, HEADERS = sizeof(struct iphdr) + sizeof(struct udphdr) };

static volatile sig_atomic_t stopped;

static void stop(int number) { (void)number; stopped = 1; }

static void die(const char *what) { perror(what); exit(1); }

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

/* xorshift64*: a digest that no key makes needs no better. */
static uint64_t next_random(void)
{
    static uint64_t state = 88172645463325252ULL;
    state ^= state >> 12; state ^= state << 25; state ^= state >> 27;
    return state * 2685821657736338717ULL;
}

static int flood(char **arguments, int is_knock)
{
    static char packets[BATCH][HEADERS + MAX_PAYLOAD];
    static struct mmsghdr messages[BATCH];
    static struct iovec parts[BATCH];
    struct sockaddr_in to = { .sin_family = AF_INET };
    if (inet_pton(AF_INET, arguments[0], &to.sin_addr) != 1) { fputs("not an IPv4 address\n", stderr); return 2; }
    uint16_t port = htons(atoi(arguments[1]));
    size_t payload = is_knock ? KNOCK_LENGTH : (size_t)atoi(arguments[2]);
    uint32_t tag = htonl(strtoul(arguments[2], NULL, 16));
    double rate = atof(arguments[3]);
    uint32_t source;
    if (payload > MAX_PAYLOAD || inet_pton(AF_INET, arguments[4], &source) != 1) { fputs("bad arguments\n", stderr); return 2; }
    source = ntohl(source);
    uint32_t count = atoi(arguments[5]);

    int sock = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);
    if (sock < 0) die("socket");
    for (int i = 0; i < BATCH; i++) {
        struct iphdr *ip = (struct iphdr *)packets[i];
        struct udphdr *udp = (struct udphdr *)(ip + 1);
        ip->version = 4; ip->ihl = 5; ip->ttl = 64; ip->protocol = IPPROTO_UDP;
        ip->tot_len = htons(HEADERS + payload);
        ip->daddr = to.sin_addr.s_addr;
        udp->dest = port;
        udp->len = htons(sizeof *udp + payload);
        parts[i] = (struct iovec){ packets[i], HEADERS + payload };
        messages[i].msg_hdr = (struct msghdr){ .msg_name = &to, .msg_namelen = sizeof to, .msg_iov = &parts[i], .msg_iovlen = 1 };
    }
    double started = now();
    uint64_t sent = 0;
    while (!stopped) {
        double due = rate ? (now() - started) * rate : sent + BATCH;
        if (due < sent + 1) {
            struct timespec pause = { 0, 100000 };
            nanosleep(&pause, NULL);
            continue;
        }
        int batch = due - sent < BATCH ? due - sent : BATCH;
        for (int i = 0; i < batch; i++) {
            struct iphdr *ip = (struct iphdr *)packets[i];
            struct udphdr *udp = (struct udphdr *)(ip + 1);
            ip->saddr = htonl(source + (sent + i) % count);
            udp->source = htons(1024 + next_random() % 60000);
            if (is_knock) {
                uint64_t *words = (uint64_t *)(udp + 1);
                for (int j = 0; j < KNOCK_LENGTH / 8; j++) { uint64_t word = next_random(); memcpy(words + j, &word, 8); }
                memcpy(words, &tag, 4);
            }
        }
        int done = sendmmsg(sock, messages, batch, 0);
        if (done < 0 && errno != ENOBUFS && errno != EAGAIN && errno != EINTR && errno != EPERM) die("sendmmsg");
        if (done > 0) sent += done;
    }
    printf("%llu %.6f\n", (unsigned long long)sent, now() - started);
    return 0;
}

static int sink(char **arguments)
{
    static char buffers[BATCH][2048];
    static struct mmsghdr messages[BATCH];
    static struct iovec parts[BATCH];
    for (int i = 0; i < BATCH; i++) {
        parts[i] = (struct iovec){ buffers[i], sizeof buffers[i] };
        messages[i].msg_hdr = (struct msghdr){ .msg_iov = &parts[i], .msg_iovlen = 1 };
    }
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(atoi(arguments[0])) };
    int sock = socket(AF_INET, SOCK_DGRAM, 0), size = 1 << 25;
    if (sock < 0 || bind(sock, (struct sockaddr *)&at, sizeof at)) die("bind");
    setsockopt(sock, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size);
    puts("ready");
    fflush(stdout);
    double started = 0, last = 0;
    uint64_t received = 0;
    while (!stopped) {
        int found = recvmmsg(sock, messages, BATCH, MSG_WAITFORONE, NULL);
        if (found <= 0) continue;
        last = now();
        if (!received) started = last;
        received += found;
    }
    printf("%llu %.6f\n", (unsigned long long)received, last - started);
    return 0;
}

int main(int count, char **arguments)
{
    /* Without SA_RESTART, so that a signal also ends a wait for packets. */
    struct sigaction action = { .sa_handler = stop };
    sigaction(SIGTERM, &action, NULL);
    if (count == 8 && !strcmp(arguments[1], "knocks")) return flood(arguments + 2, 1);
    if (count == 8 && !strcmp(arguments[1], "udp")) return flood(arguments + 2, 0);
    if (count == 3 && !strcmp(arguments[1], "sink")) return sink(arguments + 2);
    fputs("see the comment at the top of load.c\n", stderr);
    return 2;
}
