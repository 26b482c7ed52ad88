# shellcheck shell=bash
# The demo's network, to be sourced: network namespaces on one bridge.
#
#   client 10.77.0.1 ─┐
#   web1   10.77.0.11 ┤
#   web2   10.77.0.12 ┼─ bridge ── weir0 ═ Weir ═ lan0 10.77.0.2, and the VIP 10.77.0.100
#   web3   10.77.0.13 ┤
#   web4   10.77.0.14 ┘
#
# The bridge is in the namespace `lb`, as are both sides of Weir: weir0 is the wire of its port, and
# lan0 is what Linux sees of it. IPv6 has the same last digits, in fd77::/64.

PREFIX=weir-demo
HOSTS=(client web1 web2 web3 web4)
VIP=10.77.0.100
VIP6=fd77::100

# Runs a command in the namespace of a host, or of `lb`.
within() { ip netns exec "$PREFIX-$1" "${@:2}"; }

topology_up() {
  ip netns add "$PREFIX-lb"
  ip -n "$PREFIX-lb" link set lo up
  # The bridge stands for a switch. Its own address is fixed, and it never answers for a VIP.
  ip -n "$PREFIX-lb" link add switch address 02:00:00:00:77:ff type bridge forward_delay 0
  within lb sysctl -qw net.ipv4.conf.switch.arp_ignore=1 net.ipv6.conf.switch.disable_ipv6=1
  ip -n "$PREFIX-lb" link set switch up

  host_up client 1
  local number
  for number in 1 2 3 4; do
    host_up "web$number" "1$number"
  done
}

# Makes a host with a cable to the switch. A web server has the VIP too, on its loopback, and must
# keep that to itself: clients have to find Weir when they ask who has it.
host_up() {
  local host=$1 number=$2 netns=$PREFIX-$1
  ip netns add "$netns"
  within "$host" sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2
  ip -n "$PREFIX-lb" link add "$host" type veth peer name eth0 netns "$netns"
  ip -n "$PREFIX-lb" link set "$host" master switch up
  ip -n "$netns" link set lo up
  ip -n "$netns" link set eth0 up
  ip -n "$netns" addr add "10.77.0.$number/24" dev eth0
  ip -n "$netns" addr add "fd77::$number/64" dev eth0 nodad
  if [[ $host == web* ]]; then
    ip -n "$netns" addr add "$VIP" dev lo
    ip -n "$netns" addr add "$VIP6" dev lo nodad
  fi
}

# Plugs Weir's wire into the switch. The driver gave the wire the address of Weir's port; a bridge
# keeps frames for its own interfaces' addresses, so the wire needs another one.
plug_in_weir() {
  ip -n "$PREFIX-lb" link set weir0 address 02:00:00:00:77:fe
  ip -n "$PREFIX-lb" link set weir0 master switch up
}

# Ends what runs in the namespaces, and removes them with all that is in them.
topology_down() {
  local host pids
  for host in lb "${HOSTS[@]}"; do
    [[ -e /run/netns/$PREFIX-$host ]] || continue
    pids=$(ip netns pids "$PREFIX-$host")
    # shellcheck disable=SC2086 # one word each
    [[ -z $pids ]] || kill $pids 2>/dev/null || true
    ip netns del "$PREFIX-$host"
  done
}
