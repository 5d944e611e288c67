// SPDX-License-Identifier: Apache-2.0

package connector_test

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/failure"
	"diskhook/storage/managed/connector"
)

func TestProperties(t *testing.T) {
	w := world(t)
	p, err := host(w).Properties(t.Context())
	must(t, err)
	if p.Initiator != "iqn.1993-08.org.debian:01:abc" || !p.Multipath || !p.NVMeMultipath || p.IP != nil ||
		!cmp.Equal(p.WWPNs, []string{"5001438000000005", "5001438000000006"}) {
		t.Errorf("%+v", p)
	}
}

// What did not answer in time is not told to be away.
func TestPropertiesInTime(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	p, err := host(world(t)).Properties(ctx)
	if failure.KindOf(err) != failure.Temporary || !errors.Is(err, context.Canceled) || failure.HintOf(err) == "" || !cmp.Equal(p, connector.Properties{}) {
		t.Errorf("%+v, %v", p, err)
	}
}
