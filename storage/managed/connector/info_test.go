// SPDX-License-Identifier: Apache-2.0

package connector_test

import (
	"errors"
	"strings"
	"testing"

	"diskhook/storage/managed/connector"
)

// What is no connection data is told of in words that are not Go's.
func TestWordsForConnectionDataThatIsNone(t *testing.T) {
	for text, want := range map[string]string{
		``:                           "it is empty",
		`{"data":`:                   "it ends in the middle",
		`[1]`:                        "it is of type array",
		`{"driver_volume_type":7}`:   "driver_volume_type is of type number",
		`{"a" 1}`:                    "(at byte ",
		`{} {}`:                      "something follows the object",
		`{"data":{}}`:                "driver_volume_type is missing",
		`{"driver_volume_type":"x"}`: "data is missing",
	} {
		_, err := connector.ParseInfo([]byte(text))
		if !errors.Is(err, connector.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
		for _, foreign := range []string{"Go ", "struct", "EOF"} {
			if err != nil && strings.Contains(err.Error(), foreign) {
				t.Errorf("%s: %v", text, err)
			}
		}
	}
}

// Whatever a driver calls its secret, it is masked.
func TestNamesOfSecrets(t *testing.T) {
	for _, key := range []string{"auth_password", "keyring", "passphrase", "tls_psk", "apikey", "api_key", "dhchap_key", "access_token"} {
		if got := string(connector.Redact([]byte(`{"data":{"` + key + `":"canary"}}`))); strings.Contains(got, "canary") {
			t.Errorf("%s is told: %s", key, got)
		}
	}
}
