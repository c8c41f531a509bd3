# Shell functions for scripts in a machine of `cargo xtask vm`: `. /run/vm/lib.sh`.

# In User-Mode Linux everything is built in and there is nothing to load.
modprobe() { command modprobe "$@" 2>/dev/null || true; }

# wait_for SECONDS COMMAND...: until the command succeeds, at most so long.
wait_for() {
	local end=$((SECONDS + $1))
	shift
	until "$@"; do
		[ $SECONDS -lt $end ] || return 1
		sleep 0.05
	done
}

# --- The kernel's NVMe-oF target, by configfs ---

NVMET=/sys/kernel/config/nvmet

nvmet_start() { # TRANSPORT...: tcp, rdma, loop
	modprobe -a configfs nvmet
	local transport
	for transport; do modprobe "nvmet_$transport"; modprobe "nvme_$transport"; done
	mountpoint -q /sys/kernel/config || mount -t configfs configfs /sys/kernel/config
}

nvmet_subsystem() { # NQN
	mkdir "$NVMET/subsystems/$1" && echo 1 >"$NVMET/subsystems/$1/attr_allow_any_host"
}

nvmet_namespace() { # NQN NSID DEVICE
	local dir="$NVMET/subsystems/$1/namespaces/$2"
	mkdir "$dir" && echo -n "$3" >"$dir/device_path" && echo 1 >"$dir/enable"
}

nvmet_port() { # PORT TRANSPORT ADDRESS SERVICE
	local dir="$NVMET/ports/$1"
	mkdir "$dir" && echo "$2" >"$dir/addr_trtype" && echo ipv4 >"$dir/addr_adrfam" &&
		echo "$3" >"$dir/addr_traddr" && echo "$4" >"$dir/addr_trsvcid"
}

nvmet_export() { # PORT NQN
	ln -s "$NVMET/subsystems/$2" "$NVMET/ports/$1/subsystems/"
}

# --- Two network devices in one namespace whose traffic really crosses the wire ---
#
# rxe passes nothing between namespaces, and on `lo` rdma_cm finds no route: so both ends live in one
# namespace, and policy routing keeps the kernel from taking the short cut. va is 192.0.2.1, vb 192.0.2.2.

wire_addresses() {
	local dev
	for dev in all va vb; do
		echo 1 >/proc/sys/net/ipv4/conf/$dev/accept_local
		echo 0 >/proc/sys/net/ipv4/conf/$dev/rp_filter
		echo 1 >/proc/sys/net/ipv4/conf/$dev/arp_ignore
	done
	ip addr add 192.0.2.1/32 dev va
	ip addr add 192.0.2.2/32 dev vb
	ip link set va up
	ip link set vb up
	ip rule add pref 10 iif va lookup local
	ip rule add pref 11 iif vb lookup local
	ip rule add pref 20 from 192.0.2.1 to 192.0.2.2 lookup 101
	ip rule add pref 21 from 192.0.2.2 to 192.0.2.1 lookup 102
	wire_routes
	ip rule add pref 1000 lookup local
	ip rule del pref 0
}

# The routes go away with a link that goes down; call this when it is up again.
wire_routes() {
	ip route replace 192.0.2.2 dev va src 192.0.2.1 table 101
	ip route replace 192.0.2.1 dev vb src 192.0.2.2 table 102
}

# va === vb, directly.
wire_direct() {
	modprobe veth
	ip link add va mtu 9000 type veth peer name vb mtu 9000
	wire_addresses
}

# va - pa = br0 = pb - vb: `ip link set pa down` pulls the cable without taking va itself down.
wire_bridged() {
	modprobe -a veth bridge
	ip link add br0 type bridge
	local end
	for end in a b; do
		ip link add v$end mtu 4500 type veth peer name p$end mtu 4500
		ip link set p$end master br0
		ip link set p$end up
	done
	ip link set br0 up
	wire_addresses
}

# Soft-RoCE devices rxea and rxeb on the wire's ends. rxe wants the hash "crc32" but does not say so.
wire_rxe() {
	modprobe -a crc32_generic rdma_rxe rdma_ucm
	rdma link add rxea type rxe netdev va
	rdma link add rxeb type rxe netdev vb
}
