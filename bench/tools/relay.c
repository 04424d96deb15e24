/* The least that can bring a pod's packets to another node through user space, as a yardstick: between a TUN device, the pod's, and a packet
 * socket on the uplink, by one thread that asks and yields, and sleeps when nothing comes. There is no table, no check, no header that a peer would understand, no peer but one,
 * and nothing is counted: what is slower than this by hand is what all of that costs, and what kernel VXLAN is faster than this is what a detour
 * through user space costs on this machine. IPv4 only.
 *
 *	relay TUN UPLINK one       one read and one write a packet
 *	relay TUN UPLINK joined    reads up to 64 packets by one call (io_uring); equal datagrams of a flow leave, and reach the
 *	                           other pod, as one superframe
 *	relay TUN UPLINK bundled   the same, but all that is read leaves as one superframe, as in the native stream, and is joined behind it: for links that
 *	                           do not cut
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/io_uring.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define VIRTIO ((int)sizeof(struct virtio_net_hdr))
#define FRONT (VIRTIO + ETH_HLEN)
#define IPUDP ((int)(sizeof(struct iphdr) + sizeof(struct udphdr)))
#define IPTCP ((int)(sizeof(struct iphdr) + sizeof(struct tcphdr)))
#define OFFLOADS (TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | 0x20 | 0x40) /* and USO4, USO6 */
#define BATCH 64
#define TURN 8	     /* superframes one way before the other way is looked at */
#define LARGE 2048   /* what is larger is not bundled */
#define MOST 60000   /* bytes in a bundle or a run */
#define PORT 7471    /* of bundles */
#define PATIENCE 100 /* looks for nothing, before it sleeps */
#ifndef RWF_NOWAIT
#define RWF_NOWAIT 8
#endif

/* Packets that go one way. Each stands, with its metadata in front, behind room for an Ethernet header; n counts from the metadata on. */
struct batch {
	int count, n[BATCH];
	char at[BATCH][FRONT + 65536];
};

static int tun, uplink, bundled;
static struct batch out, in;
static char bundle[FRONT + 65536], arrived[FRONT + 65536];

/* The Ethernet header stands between the metadata and the packet on one side only. */
static void shift(char *to, const char *from, int by)
{
	struct virtio_net_hdr h;

	memcpy(&h, from, VIRTIO);
	if (h.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM)
		h.csum_start += by;
	if (h.gso_type)
		h.hdr_len += by;
	memcpy(to, &h, VIRTIO);
}

static void forward(char *f, int n)
{
	shift(f, f + ETH_HLEN, ETH_HLEN);
	memcpy(f + VIRTIO, "\2\2\2\2\2\2\2\2\2\2\2\2\x08\0", ETH_HLEN); /* to nobody: the kernel leaves it to packet sockets */
	if (write(uplink, f, n + ETH_HLEN) < 0) {} /* lost */
}

static unsigned sum(const void *from, int n)
{
	const uint8_t *b = from;
	unsigned s = 0;

	for (int i = 0; i < n; i += 2)
		s += b[i] << 8 | b[i + 1];
	while (s >> 16)
		s = (s & 0xffff) + (s >> 16);
	return s;
}

/* Makes a frame of n bytes a superframe that the kernel would cut into pieces of size. Returns the pseudo-header's sum for its checksum. */
static uint16_t super(char *f, int n, int type, int size, int headers, int checksum)
{
	struct virtio_net_hdr h = {.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .gso_type = type, .gso_size = size, .hdr_len = headers, .csum_start = sizeof(struct iphdr), .csum_offset = checksum};
	struct iphdr *ip = (void *)(f + FRONT);
	unsigned pseudo;

	ip->tot_len = htons(n - VIRTIO);
	ip->check = 0;
	ip->check = htons(~sum(ip, sizeof *ip));
	memcpy(f + ETH_HLEN, &h, VIRTIO);
	pseudo = sum(&ip->saddr, 8) + ip->protocol + n - VIRTIO - sizeof *ip;
	return htons((pseudo & 0xffff) + (pseudo >> 16));
}

static int datagram(char *f, int n)
{
	return n > VIRTIO + IPUDP && ((struct iphdr *)(f + FRONT))->protocol == IPPROTO_UDP && !((struct virtio_net_hdr *)(f + ETH_HLEN))->gso_type;
}

/* Joins the equal datagrams of each flow in a batch; of those that have gone into another one n is 0. None overtakes one of its flow. */
static void join(struct batch *b)
{
	int size[BATCH], segments[BATCH];

	for (int i = 0; i < b->count; i++) {
		char *f = b->at[i];
		int k;

		segments[i] = 0;
		if (!datagram(f, b->n[i]))
			continue;
		size[i] = b->n[i] - VIRTIO - IPUDP;
		for (k = i - 1; k >= 0; k--)
			if (segments[k] && !memcmp(b->at[k] + FRONT + 12, f + FRONT + 12, 12)) /* addresses and ports */
				break;
		if (k < 0 || size[k] != size[i] || b->n[k] + size[i] > MOST)
			k = i;
		else {
			memcpy(b->at[k] + ETH_HLEN + b->n[k], f + FRONT + IPUDP, size[i]);
			b->n[k] += size[i];
			b->n[i] = 0;
		}
		segments[k]++;
	}
	for (int i = 0; i < b->count; i++) {
		if (segments[i] > 1) {
			struct udphdr *udp = (void *)(b->at[i] + FRONT + sizeof(struct iphdr));

			udp->len = htons(b->n[i] - VIRTIO - sizeof(struct iphdr));
			udp->check = super(b->at[i], b->n[i], 5 /* UDP_L4 */, size[i], IPUDP, 6);
		}
	}
}

static struct {
	int fd;
	struct io_uring_sqe *entries;
	struct io_uring_cqe *done;
	unsigned *tail, *index, mask, *head, *end, doneMask;
} ring;

static int open_ring(void)
{
	struct io_uring_params p = {0};
	char *m;

	ring.fd = syscall(SYS_io_uring_setup, BATCH, &p);
	if (ring.fd < 0)
		return -1;
	m = mmap(0, p.sq_off.array + p.sq_entries * 4 + p.cq_entries * sizeof *ring.done, PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd, IORING_OFF_SQ_RING);
	ring.entries = mmap(0, p.sq_entries * sizeof *ring.entries, PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd, IORING_OFF_SQES);
	if (m == MAP_FAILED || ring.entries == MAP_FAILED)
		return -1;
	ring.tail = (void *)(m + p.sq_off.tail), ring.index = (void *)(m + p.sq_off.array), ring.mask = *(unsigned *)(m + p.sq_off.ring_mask);
	ring.head = (void *)(m + p.cq_off.head), ring.end = (void *)(m + p.cq_off.tail), ring.doneMask = *(unsigned *)(m + p.cq_off.ring_mask);
	ring.done = (void *)(m + p.cq_off.cqes);
	return 0;
}

/* Reads the first count packets of a batch from the TUN, or writes those that are not empty to it, by one call. Returns how many were read. */
static int all(struct batch *b, int op, int count)
{
	unsigned tail = *ring.tail, head, end;
	int asked = 0, got = 0;

	for (int i = 0; i < count; i++) {
		int n = op == IORING_OP_READ ? (int)sizeof b->at[i] - ETH_HLEN : b->n[i];

		if (n <= VIRTIO)
			continue;
		ring.entries[tail & ring.mask] = (struct io_uring_sqe){
			.opcode = op, .fd = tun, .addr = (uintptr_t)(b->at[i] + ETH_HLEN), .len = n, .off = -1, .rw_flags = RWF_NOWAIT, .user_data = i};
		ring.index[tail & ring.mask] = tail & ring.mask;
		tail++, asked++;
	}
	__atomic_store_n(ring.tail, tail, __ATOMIC_RELEASE);
	syscall(SYS_io_uring_enter, ring.fd, asked, asked, IORING_ENTER_GETEVENTS, 0, 0);
	head = *ring.head, end = __atomic_load_n(ring.end, __ATOMIC_ACQUIRE);
	for (; head != end; head++) {
		struct io_uring_cqe *c = &ring.done[head & ring.doneMask];

		if (op == IORING_OP_READ)
			b->n[c->user_data] = c->res, got += c->res > 0;
	}
	__atomic_store_n(ring.head, head, __ATOMIC_RELEASE);
	return got;
}

/* Sends a batch as one superframe; each packet stands in it behind its length, of two bytes. What is large goes by itself. */
static void pack(struct batch *b)
{
	static const struct iphdr ip = {.version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_TCP};
	static const struct tcphdr tcp = {.doff = 5, .ack = 1};
	int n = VIRTIO + IPTCP;

	for (int i = 0; i <= b->count; i++) {
		int large = i < b->count && b->n[i] > LARGE;

		if (n > VIRTIO + IPTCP && (i == b->count || large || n + 2 + b->n[i] > MOST)) {
			struct tcphdr *t = (void *)(bundle + FRONT + sizeof ip);

			memcpy(bundle + FRONT, &ip, sizeof ip);
			memcpy(t, &tcp, sizeof tcp);
			t->dest = htons(PORT);
			t->check = super(bundle, n, VIRTIO_NET_HDR_GSO_TCPV4, 1400, IPTCP, 16);
			forward(bundle, n);
			n = VIRTIO + IPTCP;
		}
		if (large)
			forward(b->at[i], b->n[i]);
		else if (i < b->count && b->n[i] > VIRTIO) {
			uint16_t l = b->n[i];

			memcpy(bundle + ETH_HLEN + n, &l, 2);
			memcpy(bundle + ETH_HLEN + n + 2, b->at[i] + ETH_HLEN, l);
			n += 2 + l;
		}
	}
}

static void unpack(int n)
{
	in.count = 0;
	for (int at = FRONT + IPTCP; at + 2 < n && in.count < BATCH;) {
		uint16_t l;

		memcpy(&l, arrived + at, 2);
		if (at + 2 + l > n)
			break; /* the link has cut it */
		memcpy(in.at[in.count] + ETH_HLEN, arrived + at + 2, l);
		in.n[in.count++] = l;
		at += 2 + l;
	}
	join(&in);
	all(&in, IORING_OP_WRITE, in.count);
}

static int from_pod(void)
{
	int got, n;

	if (ring.fd) {
		n = out.count + 8 < BATCH ? out.count + 8 : BATCH;
		got = all(&out, IORING_OP_READ, n);
		out.count = got; /* an empty queue stays so for the rest of the call, mostly */
		for (int i = got; i < n; i++)
			if (out.n[i] > 0)
				out.count = i + 1;
		if (bundled) {
			pack(&out);
			return got;
		}
		join(&out);
		for (int i = 0; i < out.count; i++)
			if (out.n[i] > VIRTIO)
				forward(out.at[i], out.n[i]);
		return got;
	}
	for (got = 0; got < TURN && (n = read(tun, out.at[0] + ETH_HLEN, sizeof out.at[0] - ETH_HLEN)) > VIRTIO; got++)
		forward(out.at[0], n);
	return got;
}

static int to_pod(void)
{
	int n = recv(uplink, arrived, sizeof arrived, MSG_DONTWAIT);

	if (n <= FRONT)
		return 0;
	if (bundled && n > FRONT + IPTCP && ((struct iphdr *)(arrived + FRONT))->protocol == IPPROTO_TCP &&
	    ((struct tcphdr *)(arrived + FRONT + sizeof(struct iphdr)))->dest == htons(PORT)) {
		unpack(n);
		return 1;
	}
	shift(arrived + ETH_HLEN, arrived, -ETH_HLEN);
	if (write(tun, arrived + ETH_HLEN, n - ETH_HLEN) < 0) {} /* lost */
	return 1;
}

int main(int argc, char **argv)
{
	struct ifreq r = {.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR};
	struct sockaddr_ll at = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_IP)};
	int one = 1, size = 8 << 20;

	if (argc != 4 || (strcmp(argv[3], "one") && strcmp(argv[3], "joined") && strcmp(argv[3], "bundled")))
		return fprintf(stderr, "relay TUN UPLINK one|joined|bundled\n"), 2;
	bundled = !strcmp(argv[3], "bundled");
	strncpy(r.ifr_name, argv[1], IFNAMSIZ - 1);
	tun = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
	if (tun < 0 || ioctl(tun, TUNSETIFF, &r) || ioctl(tun, TUNSETOFFLOAD, OFFLOADS))
		return perror("relay: TUN"), 1;
	uplink = socket(AF_PACKET, SOCK_RAW, 0);
	at.sll_ifindex = if_nametoindex(argv[2]);
	if (uplink < 0 || setsockopt(uplink, SOL_PACKET, PACKET_VNET_HDR, &one, sizeof one) || setsockopt(uplink, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof one) ||
	    setsockopt(uplink, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size) || setsockopt(uplink, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size) ||
	    bind(uplink, (struct sockaddr *)&at, sizeof at))
		return perror("relay: packet socket"), 1;
	if (strcmp(argv[3], "one") && open_ring())
		return perror("relay: io_uring"), 1;
	puts("ready");
	fflush(stdout);
	for (int idle = 0;;) {
		struct pollfd wait[] = {{.fd = tun, .events = POLLIN}, {.fd = uplink, .events = POLLIN}};
		int did = from_pod();

		for (int i = 0; i < TURN && to_pod(); i++)
			did = 1;
		if (did)
			idle = 0;
		else if (++idle < PATIENCE)
			sched_yield();
		else
			poll(wait, 2, -1); /* what is measured beside it has the cores */
	}
}
