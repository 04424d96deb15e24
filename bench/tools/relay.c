/* The least that can bring a pod's packets to another node through user space, as a yardstick: between a TUN device, the pod's, and a packet
 * socket on the uplink, a superframe at a time, by one thread that asks and yields. There is no table, no check, no header but
 * Ethernet's, no peer but one and nothing is counted: what is slower than this by hand is what all of that costs, and what kernel VXLAN is faster
 * than this is what a detour through user space costs on this machine.
 *
 *	relay TUN UPLINK
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define VIRTIO sizeof(struct virtio_net_hdr)
#define OFFLOADS (TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | 0x20 | 0x40) /* and USO4, USO6 */
#define TURN 8 /* packets one way before the other way is looked at */

static int tun, uplink;
static char out[VIRTIO + ETH_HLEN + 65536], in[VIRTIO + ETH_HLEN + 65536];

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

static int from_pod(void)
{
	int n = read(tun, out + ETH_HLEN, sizeof out - ETH_HLEN);

	if (n <= (int)VIRTIO)
		return 0;
	shift(out, out + ETH_HLEN, ETH_HLEN);
	memcpy(out + VIRTIO, "\2\2\2\2\2\2\2\2\2\2\2\2\x08\0", ETH_HLEN); /* to nobody: the kernel leaves it to packet sockets */
	if (write(uplink, out, n + ETH_HLEN) < 0) {} /* lost */
	return 1;
}

static int to_pod(void)
{
	int n = recv(uplink, in, sizeof in, MSG_DONTWAIT);

	if (n <= (int)(VIRTIO + ETH_HLEN))
		return 0;
	shift(in + ETH_HLEN, in, -ETH_HLEN);
	if (write(tun, in + ETH_HLEN, n - ETH_HLEN) < 0) {} /* lost */
	return 1;
}

int main(int argc, char **argv)
{
	struct ifreq r = {.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR};
	struct sockaddr_ll at = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_IP)};
	int one = 1, size = 8 << 20;

	if (argc != 3)
		return fprintf(stderr, "relay TUN UPLINK\n"), 2;
	strncpy(r.ifr_name, argv[1], IFNAMSIZ - 1);
	tun = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
	if (tun < 0 || ioctl(tun, TUNSETIFF, &r) || ioctl(tun, TUNSETOFFLOAD, OFFLOADS))
		return perror("relay: TUN"), 1;
	uplink = socket(AF_PACKET, SOCK_RAW, 0);
	at.sll_ifindex = if_nametoindex(argv[2]);
	if (uplink < 0 || setsockopt(uplink, SOL_PACKET, PACKET_VNET_HDR, &one, sizeof one) ||
	    setsockopt(uplink, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof one) || setsockopt(uplink, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof one) ||
	    setsockopt(uplink, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size) || setsockopt(uplink, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size) ||
	    bind(uplink, (struct sockaddr *)&at, sizeof at))
		return perror("relay: packet socket"), 1;
	puts("ready");
	fflush(stdout);
	for (;;) {
		int did = 0;

		for (int i = 0; i < TURN && from_pod(); i++)
			did = 1;
		for (int i = 0; i < TURN && to_pod(); i++)
			did = 1;
		if (!did)
			sched_yield();
	}
}
