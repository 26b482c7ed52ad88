#define _GNU_SOURCE
#include "shim.h"

uint16_t shim_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **frames, uint16_t room,
		       uint64_t forget)
{
	uint16_t count = rte_eth_rx_burst(port, queue, frames, room);

	for (uint16_t i = 0; i < count; i++) {
		if (unlikely((frames[i]->ol_flags & forget) != 0))
			frames[i]->ol_flags &= ~forget;
		/* Fails where the first buffer has no room for the rest: then the frame stays as it is. */
		if (unlikely(frames[i]->nb_segs != 1))
			rte_pktmbuf_linearize(frames[i]);
	}
	return count;
}

uint16_t shim_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **frames, uint16_t count,
		       bool prepare)
{
	if (prepare)
		count = rte_eth_tx_prepare(port, queue, frames, count);
	return rte_eth_tx_burst(port, queue, frames, count);
}

struct rte_mbuf *shim_mbuf_alloc(struct rte_mempool *pool)
{
	return rte_pktmbuf_alloc(pool);
}

int shim_mbuf_alloc_bulk(struct rte_mempool *pool, struct rte_mbuf **frames, unsigned int count)
{
	return rte_pktmbuf_alloc_bulk(pool, frames, count);
}

void shim_mbuf_free(struct rte_mbuf *frame)
{
	rte_pktmbuf_free(frame);
}

int shim_errno(void)
{
	return rte_errno;
}

unsigned int shim_lcore_id(void)
{
	return rte_lcore_id();
}

int shim_port_info(uint16_t port, struct shim_port_info *info)
{
	struct rte_eth_dev_info dev;
	int ret = rte_eth_dev_info_get(port, &dev);

	if (ret < 0)
		return ret;
	*info = (struct shim_port_info){
		.driver = dev.driver_name,
		.device = dev.device,
		.frame_overhead = RTE_ETHER_HDR_LEN + RTE_ETHER_CRC_LEN,
		.mtu_min = dev.min_mtu,
		.queues_max = RTE_MIN(dev.max_rx_queues, dev.max_tx_queues),
		.rx_offloads = dev.rx_offload_capa,
		.tx_offloads = dev.tx_offload_capa,
		.rss = dev.flow_type_rss_offloads,
	};
	/* As rte_eth_dev_configure reckons it. */
	if (dev.max_mtu != UINT16_MAX && dev.max_rx_pktlen > dev.max_mtu)
		info->frame_overhead = dev.max_rx_pktlen - dev.max_mtu;
	if (dev.max_rx_pktlen < info->frame_overhead)
		info->mtu_max = 0;
	else
		info->mtu_max = RTE_MIN(dev.max_mtu, dev.max_rx_pktlen - info->frame_overhead);
	return 0;
}

int shim_port_configure(uint16_t port, uint16_t queues, uint16_t mtu, uint64_t rx_offloads,
			uint64_t tx_offloads, uint64_t rss)
{
	struct rte_eth_conf conf = {
		.rxmode = {
			.mq_mode = rss != 0 ? RTE_ETH_MQ_RX_RSS : RTE_ETH_MQ_RX_NONE,
			.mtu = mtu,
			.offloads = rx_offloads,
		},
		.txmode = {.mq_mode = RTE_ETH_MQ_TX_NONE, .offloads = tx_offloads},
		.rx_adv_conf.rss_conf.rss_hf = rss,
	};

	return rte_eth_dev_configure(port, queues, queues, &conf);
}

int shim_link_is_up(uint16_t port)
{
	struct rte_eth_link link = {0};
	int ret = rte_eth_link_get_nowait(port, &link);

	return ret < 0 ? ret : link.link_status == RTE_ETH_LINK_UP;
}

static FILE *print_stream, *nowhere, *real_stdout, *real_stderr;

static FILE *open_stream(void *cookie, shim_write *write)
{
	FILE *stream = fopencookie(cookie, "w", (cookie_io_functions_t){.write = write});

	if (stream != NULL)
		setvbuf(stream, NULL, _IOLBF, BUFSIZ);
	return stream;
}

int shim_log_to(void *cookie, shim_write *log, shim_write *print)
{
	FILE *log_stream = open_stream(cookie, log);

	print_stream = open_stream(cookie, print);
	nowhere = fopen("/dev/null", "w");
	if (log_stream == NULL || print_stream == NULL || nowhere == NULL)
		return -1;
	return rte_openlog_stream(log_stream);
}

void shim_divert_begin(void)
{
	/* In glibc these are variables. */
	real_stdout = stdout;
	real_stderr = stderr;
	stdout = nowhere;
	stderr = print_stream;
}

void shim_divert_end(void)
{
	fflush(print_stream);
	stderr = real_stderr;
	stdout = real_stdout;
}
