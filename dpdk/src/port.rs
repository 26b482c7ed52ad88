//! Devices: attached, configured, started, and closed when nobody holds them any more.

use std::{marker::PhantomData, sync::Arc};

use dpdk_sys as sys;
use thiserror::Error;

use crate::{
    device::Device,
    eal::Eal,
    error::CallError,
    pool::{HEADROOM_BYTES, MbufPool},
    queue::{RxQueue, TxQueue},
};

/// A port that was attached.
#[derive(Debug)]
pub enum Unconfigured {}
/// A port that has its queues, but no buffers for them.
#[derive(Debug)]
pub enum Configured {}
/// A port that runs.
#[derive(Debug)]
pub enum Started {}

/// A network device: [`Unconfigured`], [`Configured`] or [`Started`].
///
/// It is stopped, closed and detached when the port and all of its queues are dropped.
#[derive(Debug)]
pub struct Port<State> {
    device: Arc<Device>,
    settings: Settings,
    _state: PhantomData<State>,
}

/// A port that was started, and its queues: each has one owner.
#[derive(Debug)]
pub struct StartedPort {
    /// The port.
    pub port: Port<Started>,
    /// Its queues, by number.
    pub queues: Vec<(RxQueue, TxQueue)>,
}

/// What a port is to be like.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct PortConfig {
    /// Pairs of a receive and a transmit queue.
    pub queues: u16,
    /// Length of a receive queue; taken to the nearest that the device has. Most drivers keep as
    /// many buffers of the pool.
    pub rx_descriptors: u16,
    /// Length of a transmit queue; taken to the nearest that the device has.
    pub tx_descriptors: u16,
    /// Largest L3 packet, in bytes.
    pub mtu: u16,
    /// The MAC address, if not the device's own.
    pub mac: Option<[u8; 6]>,
    /// Receive frames for any MAC address.
    pub promiscuous: bool,
    /// Have the device check IPv4 headers, where it can.
    pub check_ip_checksums: bool,
    /// Have the device complete UDP checksums that frames leave to it, where it can. With most drivers
    /// all frames are sent in a slower way then: only where there are such frames.
    pub complete_udp_checksums: bool,
    /// All frames of the process come from one pool: where the device can, it frees them without
    /// looking. There can be no second pool then.
    pub fast_free: bool,
}

impl Default for PortConfig {
    fn default() -> Self {
        Self {
            queues: 1,
            rx_descriptors: 1024,
            tx_descriptors: 1024,
            mtu: 1500,
            mac: None,
            promiscuous: false,
            check_ip_checksums: true,
            complete_udp_checksums: false,
            fast_free: false,
        }
    }
}

/// Something that was asked for, that the device cannot do, and that the port goes without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// The MTU cannot be set: the device has its own.
    Mtu,
    /// The MAC address cannot be set: the device has its own.
    Mac,
    /// Promiscuous mode cannot be set: the device has its own idea of what to receive.
    Promiscuous,
    /// Frames are not spread over the queues by addresses and ports, but in the driver's own way.
    Rss,
}

/// A device cannot be attached.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AttachError {
    /// The device's name or arguments cannot be a C string.
    #[error("the device {0:?} contains a zero byte")]
    Devargs(String),
    /// No driver and no bus knows the name.
    #[error(
        "device {devargs:?} is neither a PCI address nor a number after the name of an installed \
         driver, as in \"net_tap0\""
    )]
    Unknown {
        /// The device, as asked for.
        devargs: String,
    },
    /// There is no such device, or its driver refuses it.
    #[error("device {devargs:?} cannot be attached: {error}")]
    Probe {
        /// The device, as asked for.
        devargs: String,
        /// Why not.
        error: CallError,
    },
    /// The device is not a network device, or has been attached before.
    #[error("device {devargs:?} is attached already, or has no network port")]
    NoPort {
        /// The device, as asked for.
        devargs: String,
    },
    /// The device is several ports at once.
    #[error("device {devargs:?} has {count} network ports; only devices with one can be used")]
    ManyPorts {
        /// The device, as asked for.
        devargs: String,
        /// How many it has.
        count: usize,
    },
}

/// A port cannot be configured or started.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PortError {
    /// None, or more than the device has.
    #[error("port {port}: {asked} queues are not possible; the device has 1 to {max}")]
    Queues {
        /// The port's name.
        port: String,
        /// The queues asked for.
        asked: u16,
        /// The most it has.
        max: u16,
    },
    /// More or less than the device can do.
    #[error("port {port}: an MTU of {asked} is not possible; the device can do {min} to {max}")]
    Mtu {
        /// The port's name.
        port: String,
        /// The MTU asked for.
        asked: u16,
        /// The smallest possible.
        min: u16,
        /// The largest possible.
        max: u16,
    },
    /// A frame of full size does not fit a buffer.
    #[error(
        "port {port}: an MTU of {mtu} needs buffers of {need} bytes, but those of the pool have \
         {have}"
    )]
    DataRoom {
        /// The port's name.
        port: String,
        /// Its MTU.
        mtu: u16,
        /// Bytes a buffer would need, headroom included.
        need: u32,
        /// Bytes it has.
        have: u16,
    },
    /// Fast free was asked for, but there are several pools.
    #[error("port {port}: fast free needs all frames to be of one pool, but there are several")]
    ManyPools {
        /// The port's name.
        port: String,
    },
    /// DPDK or the driver says no.
    #[error("port {port}: {error}")]
    Call {
        /// The port's name.
        port: String,
        /// What failed.
        error: CallError,
    },
}

/// What a port has counted since it was started. Drivers leave at 0 what they do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortStats {
    /// Frames received.
    pub ipackets: u64,
    /// Bytes received.
    pub ibytes: u64,
    /// Frames sent.
    pub opackets: u64,
    /// Bytes sent.
    pub obytes: u64,
    /// Frames lost because a receive queue was full.
    pub imissed: u64,
    /// Frames received in error.
    pub ierrors: u64,
    /// Frames that could not be sent.
    pub oerrors: u64,
    /// Times that the pool had no buffer for a frame.
    pub rx_nombuf: u64,
}

/// What a port has become.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    queues: u16,
    pub(crate) rx_descriptors: u16,
    pub(crate) tx_descriptors: u16,
    mtu: u16,
    mac: [u8; 6],
    promiscuous: bool,
    checks_ip_checksums: bool,
    completes_udp_checksums: bool,
    unsupported: Vec<Unsupported>,
}

impl Eal {
    /// Attaches one device: `net_tap0,iface=weir0`, or the address of a PCI device with its
    /// arguments, `0000:03:00.0`.
    ///
    /// # Errors
    ///
    /// [`AttachError`], which names the device and what its driver said.
    pub fn attach(&self, devargs: &str) -> Result<Port<Unconfigured>, AttachError> {
        let device = Device::probe(*self, devargs)?;
        let Device { mac, mtu, .. } = device;
        let settings = Settings { mtu, mac, ..Settings::default() };
        Ok(Port { device: Arc::new(device), settings, _state: PhantomData })
    }
}

impl<State> Port<State> {
    /// The device's name, such as `net_tap0`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.device.name
    }

    /// The driver's name, such as `net_tap`.
    #[must_use]
    pub fn driver(&self) -> &str {
        &self.device.driver
    }

    /// The MAC address.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        self.settings.mac
    }

    /// The MTU. If it is [`Unsupported`], what was asked for.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        self.settings.mtu
    }

    /// Does the device check IPv4 headers? If not, [`Mbuf::ip_checksum`](crate::Mbuf::ip_checksum) says
    /// nothing, whatever the driver says.
    #[must_use]
    pub fn checks_ip_checksums(&self) -> bool {
        self.settings.checks_ip_checksums
    }

    /// May frames leave UDP checksums to the device?
    #[must_use]
    pub fn completes_udp_checksums(&self) -> bool {
        self.settings.completes_udp_checksums
    }

    /// What was asked for in vain, so far.
    #[must_use]
    pub fn unsupported(&self) -> &[Unsupported] {
        &self.settings.unsupported
    }

    fn becomes<Next>(self) -> Port<Next> {
        Port { device: self.device, settings: self.settings, _state: PhantomData }
    }
}

impl Port<Unconfigured> {
    /// Gives the port its queues and settings.
    ///
    /// Frames are spread over the queues by addresses and ports, where the device can.
    ///
    /// # Errors
    ///
    /// [`PortError`]; the device is detached then. What the device cannot do, but the port can go
    /// without, is no error: see [`Port::unsupported`].
    pub fn configure(mut self, config: &PortConfig) -> Result<Port<Configured>, PortError> {
        let device = &*self.device;
        let _control = device.control();
        let info = device.checked_info(config)?;
        let rss = if config.queues > 1 { info.rss & sys::SHIM_RSS_IP_AND_PORTS } else { 0 };
        let asked = |wanted: bool, offload: u64| if wanted { offload } else { 0 };
        let checked =
            info.rx_offloads & asked(config.check_ip_checksums, sys::SHIM_RX_OFFLOAD_IPV4_CKSUM);
        let completed =
            info.tx_offloads & asked(config.complete_udp_checksums, sys::SHIM_TX_OFFLOAD_UDP_CKSUM);
        let mut rx_offloads = checked;
        if rss != 0 {
            rx_offloads |= info.rx_offloads & sys::SHIM_RX_OFFLOAD_RSS_HASH;
        }
        let tx_offloads = device.fast_free(config, &info)? | completed;
        device.configure(config, rx_offloads, tx_offloads, rss)?;
        let (rx_descriptors, tx_descriptors) =
            device.descriptors(config.rx_descriptors, config.tx_descriptors)?;

        let mut unsupported = Vec::new();
        if config.mtu != device.mtu && !device.set_mtu(config.mtu)? {
            unsupported.push(Unsupported::Mtu);
        }
        if let Some(mac) = config.mac
            && !device.set_mac(mac)?
        {
            unsupported.push(Unsupported::Mac);
        }
        if config.queues > 1 && rss == 0 {
            unsupported.push(Unsupported::Rss);
        }
        self.settings = Settings {
            queues: config.queues,
            rx_descriptors,
            tx_descriptors,
            mtu: device.current_mtu(),
            mac: device.current_mac(),
            promiscuous: config.promiscuous,
            checks_ip_checksums: checked != 0,
            completes_udp_checksums: completed != 0,
            unsupported,
        };
        Ok(self.becomes())
    }
}

impl Port<Configured> {
    /// Starts the port, which receives into buffers of `pool`, and hands out its queues.
    ///
    /// # Errors
    ///
    /// [`PortError`]; the device is detached then.
    pub fn start(mut self, pool: &MbufPool) -> Result<StartedPort, PortError> {
        let device = &*self.device;
        let _control = device.control();
        let Settings { mtu, .. } = self.settings;
        let need = u32::from(HEADROOM_BYTES) + u32::from(mtu) + device.info()?.frame_overhead;
        if need > u32::from(pool.data_room()) {
            let have = pool.data_room();
            return Err(PortError::DataRoom { port: device.name.clone(), mtu, need, have });
        }
        for queue in 0..self.settings.queues {
            device.set_up_queue(queue, &self.settings, pool)?;
        }
        device.start()?;
        if self.settings.promiscuous && !device.enable_promiscuous()? {
            self.settings.unsupported.push(Unsupported::Promiscuous);
        }

        let Settings { checks_ip_checksums, completes_udp_checksums, .. } = self.settings;
        let queues = (0..self.settings.queues)
            .map(|queue| {
                let rx = RxQueue::new(Arc::clone(&self.device), queue, checks_ip_checksums);
                (rx, TxQueue::new(Arc::clone(&self.device), queue, completes_udp_checksums))
            })
            .collect();
        Ok(StartedPort { port: self.becomes(), queues })
    }
}

impl Port<Started> {
    /// Whether the link is up. That of a device that cannot tell is.
    #[must_use]
    pub fn link_up(&self) -> bool {
        self.device.link_up()
    }

    /// What was counted so far.
    ///
    /// # Errors
    ///
    /// The driver's, if it cannot say.
    pub fn stats(&self) -> Result<PortStats, PortError> {
        self.device.stats()
    }
}
