/* What bindgen cannot bind: inline functions and macros. Functions work on bursts or are for set-up;
 * none is called once a frame. Every name starts with `shim_` or `SHIM_`. */
#ifndef DPDK_SYS_SHIM_H
#define DPDK_SYS_SHIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>
#include <rte_version.h>

/* Data path. */
/* Moves what lies in several buffers into the first, if it fits, and takes the flags `forget` away. */
uint16_t shim_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **frames, uint16_t room,
		       uint64_t forget);
/* `prepare`: frames may leave something to the device. One that it cannot do, and those behind it, are
 * not sent. */
uint16_t shim_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **frames, uint16_t count,
		       bool prepare);
struct rte_mbuf *shim_mbuf_alloc(struct rte_mempool *pool);
int shim_mbuf_alloc_bulk(struct rte_mempool *pool, struct rte_mbuf **frames, unsigned int count);
void shim_mbuf_free(struct rte_mbuf *frame);

/* Control path. */
int shim_errno(void);
unsigned int shim_lcore_id(void);
/* What is asked of rte_eth_dev_info, whose layout moves between releases. */
struct shim_port_info {
	const char *driver;
	struct rte_device *device;
	uint32_t frame_overhead;
	uint16_t mtu_min;
	uint16_t mtu_max;
	uint16_t queues_max;
	uint64_t rx_offloads;
	uint64_t tx_offloads;
	uint64_t rss;
};
int shim_port_info(uint16_t port, struct shim_port_info *info);
/* rte_eth_dev_configure; `rss` of 0 is no RSS. */
int shim_port_configure(uint16_t port, uint16_t queues, uint16_t mtu, uint64_t rx_offloads,
			uint64_t tx_offloads, uint64_t rss);
/* 1: up, 0: down, negative: errno. */
int shim_link_is_up(uint16_t port);
typedef ssize_t shim_write(void *cookie, const char *text, size_t len);
/* Calls `log` with what EAL logs from now on, and `print` with what C code prints to stderr while that
 * is diverted. The streams are never closed. 0, or -1. */
int shim_log_to(void *cookie, shim_write *log, shim_write *print);
/* Diverts the C library's stdout and stderr (not the descriptors 1 and 2), and puts them back: stderr
 * to `print`, stdout to nowhere. EAL prints usage texts, libbpf its warnings. One at a time. */
void shim_divert_begin(void);
void shim_divert_end(void);

/* Macros that bindgen would give a type of its own choice. */
static const uint64_t SHIM_MBUF_RX_RSS_HASH = RTE_MBUF_F_RX_RSS_HASH;
static const uint64_t SHIM_MBUF_RX_IP_CKSUM_MASK = RTE_MBUF_F_RX_IP_CKSUM_MASK;
static const uint64_t SHIM_MBUF_RX_IP_CKSUM_GOOD = RTE_MBUF_F_RX_IP_CKSUM_GOOD;
static const uint64_t SHIM_MBUF_RX_IP_CKSUM_BAD = RTE_MBUF_F_RX_IP_CKSUM_BAD;
static const uint64_t SHIM_MBUF_RX_OUTER_IP_CKSUM_BAD = RTE_MBUF_F_RX_OUTER_IP_CKSUM_BAD;
/* All that a frame can ask a device for. */
static const uint64_t SHIM_MBUF_TX_ANY = RTE_MBUF_F_TX_OFFLOAD_MASK;
static const uint64_t SHIM_MBUF_TX_UDP_OVER_IPV6 = RTE_MBUF_F_TX_UDP_CKSUM | RTE_MBUF_F_TX_IPV6;
static const uint32_t SHIM_PTYPE_TUNNEL_MASK = RTE_PTYPE_TUNNEL_MASK;
/* Where the lengths of headers begin in `tx_offload`, and how many bits the first two have. */
static const uint32_t SHIM_MBUF_L2_LEN_SHIFT = RTE_MBUF_L2_LEN_OFS;
static const uint32_t SHIM_MBUF_L2_LEN_BITS = RTE_MBUF_L2_LEN_BITS;
static const uint32_t SHIM_MBUF_L3_LEN_SHIFT = RTE_MBUF_L3_LEN_OFS;
static const uint32_t SHIM_MBUF_L3_LEN_BITS = RTE_MBUF_L3_LEN_BITS;
static const uint32_t SHIM_MBUF_L4_LEN_SHIFT = RTE_MBUF_L4_LEN_OFS;

static const uint64_t SHIM_RX_OFFLOAD_IPV4_CKSUM = RTE_ETH_RX_OFFLOAD_IPV4_CKSUM;
static const uint64_t SHIM_RX_OFFLOAD_RSS_HASH = RTE_ETH_RX_OFFLOAD_RSS_HASH;
static const uint64_t SHIM_TX_OFFLOAD_UDP_CKSUM = RTE_ETH_TX_OFFLOAD_UDP_CKSUM;
static const uint64_t SHIM_TX_OFFLOAD_FAST_FREE = RTE_ETH_TX_OFFLOAD_MBUF_FAST_FREE;

static const uint64_t SHIM_RSS_IP_AND_PORTS =
	RTE_ETH_RSS_IP | RTE_ETH_RSS_TCP | RTE_ETH_RSS_UDP | RTE_ETH_RSS_SCTP;
static const uint16_t SHIM_HEADROOM = RTE_PKTMBUF_HEADROOM;
static const uint64_t SHIM_PORT_UNOWNED = RTE_ETH_DEV_NO_OWNER;
static const uint32_t SHIM_LCORE_NONE = LCORE_ID_ANY;

/* Where the fields of an mbuf are in the DPDK that is installed. */
enum shim_mbuf_offset {
	SHIM_MBUF_BUF_ADDR = offsetof(struct rte_mbuf, buf_addr),
	SHIM_MBUF_DATA_OFF = offsetof(struct rte_mbuf, data_off),
	SHIM_MBUF_REFCNT = offsetof(struct rte_mbuf, refcnt),
	SHIM_MBUF_NB_SEGS = offsetof(struct rte_mbuf, nb_segs),
	SHIM_MBUF_PORT = offsetof(struct rte_mbuf, port),
	SHIM_MBUF_OL_FLAGS = offsetof(struct rte_mbuf, ol_flags),
	SHIM_MBUF_PACKET_TYPE = offsetof(struct rte_mbuf, packet_type),
	SHIM_MBUF_PKT_LEN = offsetof(struct rte_mbuf, pkt_len),
	SHIM_MBUF_DATA_LEN = offsetof(struct rte_mbuf, data_len),
	SHIM_MBUF_VLAN_TCI = offsetof(struct rte_mbuf, vlan_tci),
	SHIM_MBUF_RSS = offsetof(struct rte_mbuf, hash.rss),
	SHIM_MBUF_BUF_LEN = offsetof(struct rte_mbuf, buf_len),
	SHIM_MBUF_POOL = offsetof(struct rte_mbuf, pool),
	SHIM_MBUF_NEXT = offsetof(struct rte_mbuf, next),
	SHIM_MBUF_TX_OFFLOAD = offsetof(struct rte_mbuf, tx_offload),
};

#endif
