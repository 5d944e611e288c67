// SPDX-License-Identifier: Apache-2.0

package main

// libvirtArgs counts the arguments of libvirt's contract: HOOK NAME OP SUBOP
// EXTRA (libvirt's docs/hooks.rst). NAME may be anything, `-rf` or a line
// break included; it is only ever passed on.
const libvirtArgs = 5

// failing says what an operation's failure does to the domain.
type failing uint8

const (
	vetoes failing = iota + 1 // the operation is refused; nothing is lost
	kills                     // libvirt kills a running QEMU, or ignores us: never fail
)

// operations are those that diskhook acts on. All others, also of libvirts to
// come, are none of its business: `started` is one of them, whose failure
// kills the QEMU that has just begun to run.
var operations = map[string]failing{
	"prepare":   vetoes,
	"start":     vetoes,
	"migrate":   vetoes,
	"restore":   vetoes,
	"reconnect": kills,
	"release":   kills,
}

func fromLibvirt(args []string) int {
	failing, known := operations[args[1]]
	if !known {
		return 0
	}
	xml := readXML(stdin)
	if !xml.marked && !hasReceipts(xml.uuid) {
		return 0
	}
	argv := append([]string{program, "hook", "run", "--", "libvirt"}, args...)
	if failing == kills {
		runAndForget(argv, baseEnv(), xml)
		return 0
	}
	if xml.tooLarge() {
		complain("domain XML larger than 16 MiB; define the domain with less metadata")
		return 1
	}
	hand(argv, baseEnv(), xml)
	return 1
}
