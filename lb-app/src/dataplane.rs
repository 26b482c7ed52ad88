//! From the configuration to started ports: EAL, memory, devices.

use std::sync::Arc;

use dpdk::{
    Eal, EalConfig, HEADROOM_BYTES, LogLevel, MbufPool, Memory, PoolConfig, Port, PortConfig,
    Started, StartedPort, Unsupported,
};
use lb_config::{ChecksumOffload, Config, Hugepages, Workers};
use lb_core::model::{Forward, Tunnel, TunnelKind};
use lb_core::tables::next_hop;
use lb_core::wire::ethernet::{HEADER_BYTES, MacAddr, TAG_BYTES, TAGS_MAX};
use tracing::{info, warn};

use crate::adapter::{KernelQueue, PortQueues};
use crate::workers::{available_cpus, hand_over_queues, kernel_queue};

/// Frames in a receive or transmit queue.
const DESCRIPTORS: u16 = 1024;
/// Bytes in a buffer behind the headroom, at least: what many NICs want.
const DATA_ROOM_MIN: usize = 2048;
/// NICs (Intel's, of 1 and 10 Gbit/s) count the room of a buffer in these, and use no part of one: what
/// does not fit then would come in a second buffer.
const DATA_ROOM_STEP: usize = 1024;
/// The frame check sequence, which some NICs put into the buffer too.
const FCS_BYTES: usize = 4;
/// Bytes that a buffer takes besides its data: `rte_mbuf`, the mempool's header, alignment.
const BUFFER_OVERHEAD: usize = 256;

/// Why the data plane cannot be set up. One line: the cause, and what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DataplaneError {
    #[error("must run as root: DPDK and network interfaces need it; try `sudo weir run …`")]
    NotRoot,
    #[error(
        "hugepages = \"required\", but {free_mb} MiB of huge pages are free and memory_mb = \
         {asked_mb}; reserve more, as in `echo {pages} > \
         /proc/sys/vm/nr_hugepages`, or write hugepages = \"auto\""
    )]
    HugePages { asked_mb: u32, free_mb: u64, pages: u32 },
    #[error("worker CPU {cpu} does not exist here or may not be used; choose among {available}")]
    NoCpu { cpu: u16, available: String },
    #[error("DPDK does not start: {0}")]
    Eal(#[from] dpdk::EalError),
    #[error("{0}; raise memory_mb in [dataplane]")]
    Pool(#[from] dpdk::PoolError),
    #[error("port {name:?}: {error}; check `device` and the interface or PCI address it names")]
    Attach { name: String, error: dpdk::AttachError },
    #[error("port {name:?}: {error}")]
    Port { name: String, error: dpdk::PortError },
    #[error(
        "port {name:?}: the device has MAC {has} and cannot have another; leave `mac` out or write \
         that one"
    )]
    Mac { name: String, has: MacAddr },
}

/// What the kernel's side of a port needs.
#[derive(Debug)]
pub(crate) struct KernelQueues {
    pub(crate) to_kernel: KernelQueue,
    pub(crate) from_kernel: KernelQueue,
}

/// Everything of DPDK's, started.
#[derive(Debug)]
pub(crate) struct Dataplane {
    pub(crate) eal: Eal,
    pub(crate) pool: MbufPool,
    /// As the load balancer knows them, in the order of the configuration.
    pub(crate) ports: Vec<next_hop::Port>,
    /// The same as DPDK knows them.
    pub(crate) devices: Vec<Port<Started>>,
    /// The CPU of each worker.
    pub(crate) cpus: Vec<usize>,
    /// By worker, by port.
    pub(crate) queues: Vec<Vec<PortQueues>>,
    /// By port; absent without a kernel side.
    pub(crate) kernel: Vec<Option<KernelQueues>>,
}

impl Dataplane {
    /// Starts EAL and all ports.
    pub(crate) fn start(config: &Config) -> Result<Self, DataplaneError> {
        if !nix::unistd::geteuid().is_root() {
            return Err(DataplaneError::NotRoot);
        }
        let cpus = worker_cpus(&config.dataplane.workers)?;
        let eal = start_eal(config)?;
        let pool = create_pool(eal, config, cpus.len())?;

        let mut dataplane = Self {
            eal,
            pool,
            ports: Vec::new(),
            devices: Vec::new(),
            queues: cpus.iter().map(|_| Vec::new()).collect(),
            cpus,
            kernel: Vec::new(),
        };
        let sends_udp_checksums = sends_udp_checksums(config);
        for port in &config.ports {
            dataplane.add(port, sends_udp_checksums)?;
        }
        Ok(dataplane)
    }

    fn add(
        &mut self,
        port: &lb_config::PortConfig,
        sends_udp_checksums: bool,
    ) -> Result<(), DataplaneError> {
        let name = || port.name.clone();
        let offload = port.checksum_offload == ChecksumOffload::Auto;
        let unconfigured = self
            .eal
            .attach(&port.device)
            .map_err(|error| DataplaneError::Attach { name: name(), error })?;
        let StartedPort { port: device, queues } = unconfigured
            .configure(&PortConfig {
                queues: u16::try_from(self.cpus.len()).unwrap_or(u16::MAX),
                rx_descriptors: DESCRIPTORS,
                tx_descriptors: DESCRIPTORS,
                mtu: port.mtu,
                mac: port.mac.map(|mac| mac.0),
                promiscuous: false,
                check_ip_checksums: offload,
                complete_udp_checksums: offload && sends_udp_checksums,
                fast_free: true,
            })
            .and_then(|configured| configured.start(&self.pool))
            .map_err(|error| DataplaneError::Port { name: name(), error })?;
        let mac = MacAddr(device.mac());
        if port.mac.is_some_and(|wanted| wanted != mac) {
            return Err(DataplaneError::Mac { name: name(), has: mac });
        }
        if device.unsupported().contains(&Unsupported::Mtu) {
            let (has, wanted) = (device.mtu(), port.mtu);
            warn!(
                "port {}: the device keeps its MTU of {has}; {wanted} is taken as true",
                port.name
            );
        }
        let checksums = match (device.checks_ip_checksums(), device.completes_udp_checksums()) {
            (false, false) => "none",
            (true, false) => "IPv4 in",
            (false, true) => "UDP out",
            (true, true) => "IPv4 in, UDP out",
        };
        info!(
            "port {} is {} ({}), MAC {mac}; checksums by the device: {checksums}",
            port.name,
            port.device,
            device.driver()
        );

        let kernel = port
            .kernel
            .then(|| KernelQueues { to_kernel: kernel_queue(), from_kernel: kernel_queue() });
        let hand_over = hand_over_queues(self.cpus.len());
        for ((rx, tx), (worker, of_worker)) in
            queues.into_iter().zip(self.queues.iter_mut().enumerate())
        {
            let queue =
                |pick: fn(&KernelQueues) -> &KernelQueue| kernel.as_ref().map(pick).cloned();
            of_worker.push(PortQueues {
                rx,
                tx,
                to_kernel: queue(|kernel| &kernel.to_kernel),
                // One worker sends all of it, so that it stays in order.
                from_kernel: queue(|kernel| &kernel.from_kernel).filter(|_| worker == 0),
                hand_over: Arc::clone(&hand_over),
            });
        }
        self.kernel.push(kernel);
        self.ports.push(next_hop::Port {
            name: port.name.clone(),
            mac,
            mtu: port.mtu,
            addresses: port.addresses.clone(),
            kernel: port.kernel,
            udp_checksums: device.completes_udp_checksums(),
        });
        self.devices.push(device);
        Ok(())
    }
}

/// Is there a service that a NIC can spare a checksum over whole packets? That of an IPv4 header costs
/// less than to ask for it: the request is in a cache line of its own. And a port that may be asked
/// loses the driver's fastest way to send, for all services; so what a reload adds is done without.
fn sends_udp_checksums(config: &Config) -> bool {
    config.desired.services().iter().any(|service| {
        let spec = service.spec();
        let over_gue =
            matches!(spec.forward, Forward::Tunnel(Tunnel { kind: TunnelKind::Gue { .. }, .. }));
        over_gue && spec.backends.iter().any(|backend| backend.address.is_ipv6())
    })
}

fn worker_cpus(workers: &Workers) -> Result<Vec<usize>, DataplaneError> {
    let usable: Vec<usize> =
        core_affinity::get_core_ids().unwrap_or_default().iter().map(|cpu| cpu.id).collect();
    match workers {
        // The first CPU is left to the kernel and the control thread, if there is another.
        Workers::Auto if usable.len() > 1 => {
            Ok(usable.into_iter().skip(1).take(lb_config::WORKERS_MAX).collect())
        }
        Workers::Auto => Ok(usable),
        Workers::Cpus(cpus) => {
            if let Some(&cpu) = cpus.iter().find(|&&cpu| !usable.contains(&usize::from(cpu))) {
                return Err(DataplaneError::NoCpu { cpu, available: available_cpus() });
            }
            Ok(cpus.iter().map(|&cpu| usize::from(cpu)).collect())
        }
    }
}

fn start_eal(config: &Config) -> Result<Eal, DataplaneError> {
    let dataplane = &config.dataplane;
    let (asked_mb, free_mb) = (dataplane.memory_mb, dpdk::huge_pages_free_mb());
    let enough = free_mb >= u64::from(asked_mb);
    let memory = match dataplane.hugepages {
        Hugepages::Required if !enough => {
            let pages = asked_mb.div_ceil(2);
            return Err(DataplaneError::HugePages { asked_mb, free_mb, pages });
        }
        Hugepages::Required => Memory::HugePages,
        Hugepages::Auto if enough => Memory::HugePages,
        Hugepages::Auto | Hugepages::Off => Memory::Ordinary,
    };
    let is_pci = |port: &lb_config::PortConfig| !port.device.starts_with("net_");
    let eal = Eal::start(&EalConfig {
        memory,
        memory_mb: asked_mb,
        pci: config.ports.iter().any(is_pci),
        log_level: LogLevel::Warning,
        extra_args: dataplane.eal_args.clone(),
        ..EalConfig::default()
    })?;
    let pages = if memory == Memory::HugePages { "huge" } else { "ordinary" };
    info!("{}, {asked_mb} MiB in {pages} pages", eal.version());
    Ok(eal)
}

/// One pool for all ports, with buffers for the longest frame, in half of the memory: devices need
/// some of the rest.
fn create_pool(eal: Eal, config: &Config, workers: usize) -> Result<MbufPool, DataplaneError> {
    let mtu = config.ports.iter().map(|port| usize::from(port.mtu)).max().unwrap_or(1500);
    let data_room = data_room(mtu) + usize::from(HEADROOM_BYTES);
    let memory = usize::try_from(config.dataplane.memory_mb).unwrap_or(usize::MAX) << 20;
    let fit = memory / 2 / (data_room + BUFFER_OVERHEAD);
    // Each queue full, and as many again on their way.
    let needed = config.ports.len() * workers * 2 * usize::from(DESCRIPTORS) * 2;
    // A power of two less one wastes no memory.
    let count = (fit / 2 + 1).next_power_of_two().max(needed.next_power_of_two()) - 1;
    Ok(MbufPool::create(
        eal,
        &PoolConfig {
            count: u32::try_from(count).unwrap_or(u32::MAX),
            data_room: u16::try_from(data_room).unwrap_or(u16::MAX),
            ..PoolConfig::default()
        },
    )?)
}

/// Bytes behind the headroom in which every frame of a port of this MTU lies in one piece, whatever the
/// NIC.
fn data_room(mtu: usize) -> usize {
    let frame = mtu + HEADER_BYTES + TAGS_MAX * TAG_BYTES + FCS_BYTES;
    frame.max(DATA_ROOM_MIN).next_multiple_of(DATA_ROOM_STEP)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What drivers reckon with beyond the MTU, at most (of i40e and others: two tags and the FCS).
    const OVERHEAD_MAX: usize = 26;

    #[test]
    fn buffers_have_room_for_frames_as_drivers_count() {
        for (mtu, expect) in [(1280, 2048), (1500, 2048), (2022, 2048), (2023, 3072), (9000, 9216)]
        {
            assert_eq!(data_room(mtu), expect, "{mtu}");
        }
        for mtu in 1280..=9000 {
            let whole_steps = data_room(mtu) / DATA_ROOM_STEP * DATA_ROOM_STEP;
            assert!(whole_steps >= mtu + OVERHEAD_MAX, "{mtu}");
        }
    }
}
