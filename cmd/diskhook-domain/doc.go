// SPDX-License-Identifier: Apache-2.0

// Command diskhook-domain is the part of diskhook that talks to libvirt, and
// the only one that needs cgo. It is called by diskhook, one verb at a time:
//
//	diskhook-domain [--connect URI] VERB <request.json >answer.json
//
// The verbs and their JSON are in package domains (protocol.go). libvirt's
// library is loaded when the program starts (build tag libvirt_dlopen), so
// that it builds without libvirt's headers and says clearly what is missing
// where the library is not installed.
//
// One verb, watch, answers line by line until its input ends.
//
// It decides nothing. An error is answered as {"error": {code, message,
// hint}}, with exit code 1.
package main
