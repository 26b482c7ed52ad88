use crate::support::packet::*;
use crate::support::run::{Arrival, Limits, run};
use crate::support::world::World;

#[test]
fn smoke() {
    let world = World::fixed();
    let p = Packet::tcp("198.51.100.7:40000", "10.0.0.100:80");
    let o = run(
        &world,
        &[vec![
            Arrival::new(p.frame()),
            Arrival::new(p.with(|p| p.fragment = Some((0, true))).frame()),
        ]],
        Limits::NONE,
    );
    println!("{o:?}");
    let _ = crate::support::inputs::check(&[]);
    crate::support::parsed::check(&[]);
}
