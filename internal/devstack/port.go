package devstack

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
)

// loopback is where everything listens.
const loopback = "127.0.0.1"

// firstPort is above what well-known servers listen on.
const firstPort = 10000

// reserved holds the reservations of the ports that this process was given, until it ends.
var reserved struct {
	sync.Mutex
	conns []net.PacketConn
}

// FreePort returns a TCP port of 127.0.0.1 that nobody listens on now, and that no other call returns while this process
// lives, in whichever process: the port of the same number for UDP, which nobody here uses, is the reservation. So a server
// that was killed finds its port free when it is started again, and two that start at once do not meet. Safe for concurrent
// use.
//
// Where it can it picks one below the range from which the kernel gives local ports to outgoing connections: while a server
// that was killed is down, its port would be given to some client (even to one that is dialling that very port, which then
// is connected to itself), and the restart fails.
func FreePort() (int, error) {
	if ephemeral := firstEphemeralPort(); ephemeral > firstPort {
		for range 20 {
			port := firstPort + rand.IntN(ephemeral-firstPort)
			if reserve(port) {
				return port, nil
			}
		}
	}
	for range 20 {
		port, err := listenOnce(0)
		if err != nil {
			return 0, err
		}
		if reserve(port) {
			return port, nil
		}
	}
	return 0, errors.New("find a free port: all that were tried are reserved")
}

// reserve says whether the port is free, and then is the caller's.
func reserve(port int) bool {
	c, err := net.ListenPacket("udp", fmt.Sprintf("%s:%d", loopback, port))
	if err != nil {
		return false
	}
	if _, err := listenOnce(port); err != nil {
		c.Close()
		return false
	}
	reserved.Lock()
	defer reserved.Unlock()
	reserved.conns = append(reserved.conns, c)
	return true
}

func listenOnce(port int) (int, error) {
	l, err := net.Listen("tcp", fmt.Sprintf("%s:%d", loopback, port))
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// firstEphemeralPort is 0 where the system does not say.
func firstEphemeralPort() int {
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return 0
	}
	var first int
	if _, err := fmt.Sscan(string(b), &first); err != nil {
		return 0
	}
	return first
}
