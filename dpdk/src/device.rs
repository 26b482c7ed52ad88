//! What a port and its queues share: the attached device. One method a call of DPDK's.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_uint},
    mem::{ManuallyDrop, MaybeUninit},
    ptr,
    sync::PoisonError,
};

use dpdk_sys as sys;
use nix::errno::Errno;

use crate::{
    eal::{Control, Eal},
    error::Call,
    log::LogLevel,
    pool::MbufPool,
    port::{AttachError, PortConfig, PortError, PortStats, Settings},
};

/// An attached device. Detached on drop.
#[derive(Debug)]
pub(crate) struct Device {
    eal: Eal,
    id: u16,
    pub(crate) name: String,
    pub(crate) driver: String,
    /// The address before it was configured.
    pub(crate) mac: [u8; 6],
    /// The MTU before it was configured.
    pub(crate) mtu: u16,
}

impl Device {
    /// Attaches a device that has one port.
    pub(crate) fn probe(eal: Eal, devargs: &str) -> Result<Self, AttachError> {
        let owned = || devargs.to_owned();
        let arg = CString::new(devargs).map_err(|_| AttachError::Devargs(owned()))?;
        let _control = eal.control();
        let before = port_ids();
        let call = eal.call("rte_dev_probe");
        // SAFETY: EAL runs; `arg` ends in a zero and is copied; one caller at a time.
        let ret = unsafe { sys::rte_dev_probe(arg.as_ptr()) };
        call.negative_errno(ret).map_err(|error| match error.errno {
            Errno::EFAULT => AttachError::Unknown { devargs: owned() },
            _ => AttachError::Probe { devargs: owned(), error },
        })?;
        let mut ids = port_ids();
        ids.retain(|id| !before.contains(id));
        match ids[..] {
            [id] => Ok(Self::new(eal, id)),
            [] => Err(AttachError::NoPort { devargs: owned() }),
            [first, ..] => {
                // The ports are of one device, and go with it.
                ManuallyDrop::new(Self::new(eal, first)).detach();
                Err(AttachError::ManyPorts { devargs: owned(), count: ids.len() })
            }
        }
    }

    fn new(eal: Eal, id: u16) -> Self {
        let (name, driver) = (format!("#{id}"), String::new());
        let mut device = Self { eal, id, name, driver, mac: [0; 6], mtu: 0 };
        device.mac = device.current_mac();
        device.mtu = device.current_mtu();
        let mut name: [c_char; _] = [0; sys::RTE_ETH_NAME_MAX_LEN as usize];
        // SAFETY: the buffer is as long as rte_ethdev.h asks for.
        let ret = unsafe { sys::rte_eth_dev_get_name_by_port(id, name.as_mut_ptr()) };
        if ret == 0 {
            // SAFETY: the name was written, and ends in a zero.
            let name = unsafe { CStr::from_ptr(name.as_ptr()) };
            device.name = name.to_string_lossy().into_owned();
        }
        if let Ok(info) = device.info()
            && !info.driver.is_null()
        {
            // SAFETY: a string of the driver's, which is not unloaded.
            let driver = unsafe { CStr::from_ptr(info.driver) };
            device.driver = driver.to_string_lossy().into_owned();
        }
        device
    }

    pub(crate) fn id(&self) -> u16 {
        self.id
    }

    /// See [`Eal::control`].
    pub(crate) fn control(&self) -> Control {
        self.eal.control()
    }

    /// Runs a function that returns a negative errno.
    fn call(&self, name: &'static str, function: impl FnOnce() -> c_int) -> Result<(), PortError> {
        let call = self.eal.call(name);
        self.converted(call, function())
    }

    /// The same, for what a device need not have: false, if it has not.
    fn try_call(
        &self,
        name: &'static str,
        function: impl FnOnce() -> c_int,
    ) -> Result<bool, PortError> {
        let call = self.eal.call(name);
        let ret = function();
        if ret == -(Errno::ENOTSUP as c_int) {
            return Ok(false);
        }
        self.converted(call, ret).map(|()| true)
    }

    fn converted(&self, call: Call, ret: c_int) -> Result<(), PortError> {
        match call.negative_errno(ret) {
            Ok(_) => Ok(()),
            Err(error) => Err(PortError::Call { port: self.name.clone(), error }),
        }
    }

    pub(crate) fn info(&self) -> Result<sys::shim_port_info, PortError> {
        let mut info = MaybeUninit::uninit();
        self.call("rte_eth_dev_info_get", || {
            // SAFETY: the port is attached; `info` is ours.
            unsafe { sys::shim_port_info(self.id, info.as_mut_ptr()) }
        })?;
        // SAFETY: the call succeeded, and wrote it.
        Ok(unsafe { info.assume_init() })
    }

    /// The device's abilities, if `config` is within them.
    pub(crate) fn checked_info(
        &self,
        config: &PortConfig,
    ) -> Result<sys::shim_port_info, PortError> {
        let info = self.info()?;
        let PortConfig { queues, mtu, .. } = *config;
        if queues == 0 || queues > info.queues_max {
            let max = info.queues_max;
            return Err(PortError::Queues { port: self.name.clone(), asked: queues, max });
        }
        if !(info.mtu_min..=info.mtu_max).contains(&mtu) {
            let (min, max) = (info.mtu_min, info.mtu_max);
            return Err(PortError::Mtu { port: self.name.clone(), asked: mtu, min, max });
        }
        Ok(info)
    }

    /// The offload, if it is asked for and supported; from then on there is only one pool.
    pub(crate) fn fast_free(
        &self,
        config: &PortConfig,
        info: &sys::shim_port_info,
    ) -> Result<u64, PortError> {
        let offload = info.tx_offloads & sys::SHIM_TX_OFFLOAD_FAST_FREE;
        if !config.fast_free || offload == 0 {
            return Ok(0);
        }
        let pools = &self.eal.shared().pools;
        let mut pools = pools.lock().unwrap_or_else(PoisonError::into_inner);
        if pools.keep_to_one() {
            Ok(offload)
        } else {
            Err(PortError::ManyPools { port: self.name.clone() })
        }
    }

    pub(crate) fn configure(
        &self,
        config: &PortConfig,
        rx_offloads: u64,
        tx_offloads: u64,
        rss: u64,
    ) -> Result<(), PortError> {
        let PortConfig { queues, mtu, .. } = *config;
        self.call("rte_eth_dev_configure", || {
            // SAFETY: the port is attached, and not started.
            unsafe { sys::shim_port_configure(self.id, queues, mtu, rx_offloads, tx_offloads, rss) }
        })
    }

    /// Queue lengths that the device has, as near as possible to these.
    pub(crate) fn descriptors(&self, mut rx: u16, mut tx: u16) -> Result<(u16, u16), PortError> {
        self.call("rte_eth_dev_adjust_nb_rx_tx_desc", || {
            // SAFETY: the port is attached; both numbers are ours.
            unsafe { sys::rte_eth_dev_adjust_nb_rx_tx_desc(self.id, &raw mut rx, &raw mut tx) }
        })?;
        Ok((rx, tx))
    }

    /// False, if the device cannot.
    pub(crate) fn set_mac(&self, mac: [u8; 6]) -> Result<bool, PortError> {
        let mut address = sys::rte_ether_addr { addr_bytes: mac };
        self.try_call("rte_eth_dev_default_mac_addr_set", || {
            // SAFETY: the port is attached; the address is only read.
            unsafe { sys::rte_eth_dev_default_mac_addr_set(self.id, &raw mut address) }
        })
    }

    /// False, if the device cannot.
    pub(crate) fn set_mtu(&self, mtu: u16) -> Result<bool, PortError> {
        // SAFETY: the port is attached.
        self.try_call("rte_eth_dev_set_mtu", || unsafe { sys::rte_eth_dev_set_mtu(self.id, mtu) })
    }

    /// All queues are set up.
    pub(crate) fn start(&self) -> Result<(), PortError> {
        // SAFETY: the port is attached; DPDK refuses what is not ready.
        self.call("rte_eth_dev_start", || unsafe { sys::rte_eth_dev_start(self.id) })
    }

    /// False, if the device cannot.
    pub(crate) fn enable_promiscuous(&self) -> Result<bool, PortError> {
        self.try_call("rte_eth_promiscuous_enable", || {
            // SAFETY: the port is attached.
            unsafe { sys::rte_eth_promiscuous_enable(self.id) }
        })
    }

    pub(crate) fn link_up(&self) -> bool {
        let _control = self.control();
        // SAFETY: the port is attached.
        let ret = unsafe { sys::shim_link_is_up(self.id) };
        ret == 1 || ret == -(Errno::ENOTSUP as c_int)
    }

    pub(crate) fn stats(&self) -> Result<PortStats, PortError> {
        let _control = self.control();
        let mut stats = sys::rte_eth_stats::default();
        self.call("rte_eth_stats_get", || {
            // SAFETY: the port is attached; `stats` is ours.
            unsafe { sys::rte_eth_stats_get(self.id, &raw mut stats) }
        })?;
        Ok(PortStats {
            ipackets: stats.ipackets,
            ibytes: stats.ibytes,
            opackets: stats.opackets,
            obytes: stats.obytes,
            imissed: stats.imissed,
            ierrors: stats.ierrors,
            oerrors: stats.oerrors,
            rx_nombuf: stats.rx_nombuf,
        })
    }

    /// Undoes what `configure` did to MAC address and MTU.
    fn restore(&self) -> Result<(), PortError> {
        if self.current_mac() != self.mac {
            self.set_mac(self.mac)?;
        }
        if self.current_mtu() != self.mtu {
            self.set_mtu(self.mtu)?;
        }
        Ok(())
    }

    pub(crate) fn current_mac(&self) -> [u8; 6] {
        let mut address = sys::rte_ether_addr::default();
        // SAFETY: `address` is ours. Fails for ports only that are not attached.
        unsafe { sys::rte_eth_macaddr_get(self.id, &raw mut address) };
        address.addr_bytes
    }

    pub(crate) fn current_mtu(&self) -> u16 {
        let mut mtu = 0;
        // SAFETY: `mtu` is ours. Fails for ports only that are not attached.
        unsafe { sys::rte_eth_dev_get_mtu(self.id, &raw mut mtu) };
        mtu
    }

    pub(crate) fn set_up_queue(
        &self,
        queue: u16,
        settings: &Settings,
        pool: &MbufPool,
    ) -> Result<(), PortError> {
        const ANY_SOCKET: c_uint = sys::SOCKET_ID_ANY.cast_unsigned();
        self.call("rte_eth_rx_queue_setup", || {
            // SAFETY: the port is configured with more than `queue` queues, and not started; the
            // pool is never freed; null is the driver's default.
            unsafe {
                sys::rte_eth_rx_queue_setup(
                    self.id,
                    queue,
                    settings.rx_descriptors,
                    ANY_SOCKET,
                    ptr::null(),
                    pool.as_ptr(),
                )
            }
        })?;
        self.call("rte_eth_tx_queue_setup", || {
            // SAFETY: as above.
            unsafe {
                sys::rte_eth_tx_queue_setup(
                    self.id,
                    queue,
                    settings.tx_descriptors,
                    ANY_SOCKET,
                    ptr::null(),
                )
            }
        })
    }

    /// Leaves the port behind as it was found. The caller has the control, and nobody uses the
    /// port after this.
    fn detach(&self) {
        let info = self.info();
        // A driver for an interface of the kernel's would leave that as it was configured.
        // SAFETY: the port is attached. If it was not promiscuous, nothing happens.
        unsafe { sys::rte_eth_promiscuous_disable(self.id) };
        let stopped = self.call("rte_eth_dev_stop", || {
            // SAFETY: no port or queue is left that could use the device.
            unsafe { sys::rte_eth_dev_stop(self.id) }
        });
        let restored = self.restore();
        let closed = self.call("rte_eth_dev_close", || {
            // SAFETY: as above.
            unsafe { sys::rte_eth_dev_close(self.id) }
        });
        let removed = info.and_then(|info| {
            // SAFETY: the bus has the device until it is removed, and this is the only place that
            // removes any.
            self.call("rte_dev_remove", || unsafe { sys::rte_dev_remove(info.device) })
        });
        for error in [stopped, restored, closed, removed].into_iter().filter_map(Result::err) {
            self.eal.shared().log.say(LogLevel::Warning, format!("while detaching, {error}"));
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _control = self.control();
        self.detach();
    }
}

/// The ports that exist and that no other device has taken for itself.
fn port_ids() -> Vec<u16> {
    let mut ids = Vec::new();
    let mut next = 0;
    loop {
        // SAFETY: takes any number.
        let id = unsafe { sys::rte_eth_find_next_owned_by(next, sys::SHIM_PORT_UNOWNED) };
        match u16::try_from(id) {
            Ok(id) if u32::from(id) < sys::RTE_MAX_ETHPORTS => {
                ids.push(id);
                next = id + 1;
            }
            _ => return ids,
        }
    }
}
