//! A VLAN access port: a TAP interface whose frames leave a second one tagged, and the other way
//! round. It stands for the kernel's VLAN interfaces, which not every kernel has.

use std::io;
use std::sync::Arc;

use tun_rs::{AsyncDevice, DeviceBuilder, Layer, SyncDevice};

use crate::netns::{Netns, Servers};

/// 802.1Q tag: type and priority 0, VLAN 10.
const TAG: [u8; 4] = [0x81, 0x00, 0x00, 10];

/// Where the tag stands: behind the two MAC addresses.
const TAG_AT: usize = 12;

/// Makes the interface `access` in `host`, connected to the interface `trunk` in `switch`.
pub(crate) fn connect(host: &Netns, access: &str, switch: &Netns, trunk: &str) -> Servers {
    let access = host.run(|| tap(access)).expect("root may make a TAP");
    let trunk = switch.run(|| tap(trunk)).expect("root may make a TAP");
    switch.serve(|| async {
        let access = Arc::new(AsyncDevice::new(access).expect("epoll"));
        let trunk = Arc::new(AsyncDevice::new(trunk).expect("epoll"));
        tokio::spawn(tag(Arc::clone(&access), Arc::clone(&trunk)));
        tokio::spawn(untag(trunk, access));
    })
}

fn tap(name: &str) -> io::Result<SyncDevice> {
    DeviceBuilder::new().name(name).layer(Layer::L2).build_sync()
}

// A send fails while an interface is down: the frame is lost, as on a wire.

async fn tag(access: Arc<AsyncDevice>, trunk: Arc<AsyncDevice>) -> io::Result<()> {
    let mut frame = [0; 2048];
    loop {
        let bytes = access.recv(&mut frame).await?;
        let (addresses, rest) = frame[..bytes].split_at(TAG_AT);
        trunk.send(&[addresses, &TAG, rest].concat()).await.ok();
    }
}

async fn untag(trunk: Arc<AsyncDevice>, access: Arc<AsyncDevice>) -> io::Result<()> {
    let mut frame = [0; 2048];
    loop {
        let bytes = trunk.recv(&mut frame).await?;
        let (addresses, rest) = frame[..bytes].split_at(TAG_AT);
        if let Some(rest) = rest.strip_prefix(&TAG) {
            access.send(&[addresses, rest].concat()).await.ok();
        }
    }
}
