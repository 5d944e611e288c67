// SPDX-License-Identifier: Apache-2.0

//go:build integration || e2e

package lvm

// group is the volume group of the tests with the real lvm(8).
const group = "diskhook-test"
