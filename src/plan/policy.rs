//! Policy: what an operator allows and wants. `/etc/barfit/barfit.toml`, then `barfit.d/*.toml`, then the domain.
//!
//! Later files replace single keys; rules are tried in the order of the files, first match wins; what stands in a
//! domain's `<metadata>` wins over both. Unknown keys are errors: a misspelt `bits` must not pass in silence.

use std::fmt;

use serde::{Deserialize, Deserializer};

use crate::finding::{Code, Finding};
use crate::units::PhysBits;

/// What barfit does with what it finds.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Report only.
    Observe,
    /// Correct what can be corrected; never stop a guest.
    #[default]
    Enforce,
    /// Refuse a start that would lose a GPU.
    Strict,
}

/// How wide a guest becomes.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub enum Bits {
    /// The smallest number with which everything is placed.
    #[default]
    Smallest,
    /// As wide as host and IOMMU allow.
    Host,
    /// This number.
    Fixed(PhysBits),
}

impl<'de> Deserialize<'de> for Bits {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Number(i64),
            Word(String),
        }
        let invalid = |what: &dyn fmt::Display| {
            serde::de::Error::custom(format_args!(
                "{what}; write \"smallest\", \"host\" or a number from 32 to 52"
            ))
        };
        match Raw::deserialize(d).map_err(|_| invalid(&"`bits` is neither a word nor a number"))? {
            Raw::Number(n) => u64::try_from(n)
                .ok()
                .and_then(PhysBits::new)
                .map(Bits::Fixed)
                .ok_or_else(|| invalid(&format_args!("{n} phys-bits are outside 32 to 52"))),
            Raw::Word(word) => {
                bits_from_word(&word).ok_or_else(|| invalid(&format_args!("`{word}` is no width")))
            }
        }
    }
}

fn bits_from_word(word: &str) -> Option<Bits> {
    match word {
        "smallest" => Some(Bits::Smallest),
        "host" => Some(Bits::Host),
        _ => word.parse().ok().and_then(PhysBits::new).map(Bits::Fixed),
    }
}

/// Whether `X-PciMmio64Mb` may be used.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FwCfg {
    /// Where no allowed width is enough.
    #[default]
    Auto,
    /// In every UEFI guest with a GPU.
    Always,
    /// Not at all.
    Never,
}

/// The four keys that rules and domains can set, too.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Keys {
    mode: Option<Mode>,
    bits: Option<Bits>,
    fw_cfg: Option<FwCfg>,
    headroom_gpus: Option<u8>,
}

/// One `[[rule]]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    #[serde(rename = "match")]
    matches: Match,
    mode: Option<Mode>,
    bits: Option<Bits>,
    fw_cfg: Option<FwCfg>,
    headroom_gpus: Option<u8>,
}

/// What a rule applies to; every key that is given must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Match {
    name: Option<String>,
    flavor: Option<String>,
    min_gpus: Option<u32>,
}

/// `[gpus]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Gpus {
    also: Vec<GpuId>,
}

/// A PCI id `1b36:0005` that counts as a GPU whatever its class.
#[derive(Clone, Debug, PartialEq, Eq)]
struct GpuId {
    vendor: String,
    device: String,
}

impl<'de> Deserialize<'de> for GpuId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        let four = |part: &str| part.len() == 4 && part.bytes().all(|b| b.is_ascii_hexdigit());
        match text.split_once(':') {
            Some((vendor, device)) if four(vendor) && four(device) => {
                Ok(GpuId { vendor: vendor.to_ascii_lowercase(), device: device.to_ascii_lowercase() })
            }
            _ => Err(serde::de::Error::custom(format_args!(
                "`{text}` is no PCI id; write it like \"10de:2321\""
            ))),
        }
    }
}

/// One policy file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    mode: Option<Mode>,
    bits: Option<Bits>,
    fw_cfg: Option<FwCfg>,
    headroom_gpus: Option<u8>,
    gpus: Gpus,
    rule: Vec<Rule>,
}

/// A policy of one or more files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    keys: Keys,
    also: Vec<GpuId>,
    rules: Vec<Rule>,
}

/// A policy file that cannot be used: what is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: {message}")]
pub struct PolicyError {
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// What is wrong, and what to do.
    pub message: String,
}

/// The policy as it applies to one domain.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// What barfit does with what it finds.
    pub mode: Mode,
    /// How wide a guest becomes.
    pub bits: Bits,
    /// Whether `X-PciMmio64Mb` may be used.
    pub fw_cfg: FwCfg,
    /// Room for this many GPUs plugged in later, 0 to 255.
    pub headroom_gpus: u8,
}

impl Policy {
    /// Adds a file on top of what is there.
    ///
    /// # Errors
    /// Not TOML, an unknown key, a value out of range: with line and column.
    pub fn add(&mut self, text: &str) -> Result<(), PolicyError> {
        let file: File = toml::from_str(text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start).min(text.len());
            let before = text.get(..offset).unwrap_or_default();
            let line_start = before.rfind('\n').map_or(0, |at| at + 1);
            PolicyError {
                line: 1 + u32::try_from(before.matches('\n').count()).unwrap_or(u32::MAX - 1),
                column: 1 + u32::try_from(before[line_start..].chars().count()).unwrap_or(u32::MAX - 1),
                message: error.message().trim().replace('\n', "; "),
            }
        })?;
        let keys =
            Keys { mode: file.mode, bits: file.bits, fw_cfg: file.fw_cfg, headroom_gpus: file.headroom_gpus };
        self.keys.replace_with(keys);
        self.also.extend(file.gpus.also);
        self.rules.extend(file.rule);
        Ok(())
    }

    /// Whether an id counts as a GPU although its class says otherwise.
    pub fn counts_as_gpu(&self, vendor: &str, device: &str) -> bool {
        let same =
            |id: &GpuId| id.vendor.eq_ignore_ascii_case(vendor) && id.device.eq_ignore_ascii_case(device);
        self.also.iter().any(same)
    }

    /// Whether there are PCI ids that count as GPUs although their class says otherwise.
    pub fn names_gpus(&self) -> bool {
        !self.also.is_empty()
    }

    /// What applies to a domain of this name and flavor with this many GPUs. `metadata` are the keys of barfit's
    /// own element in the domain. A rule that applies, and a metadata key that cannot be read, is a finding.
    pub fn settings(
        &self,
        name: &str,
        flavor: Option<&str>,
        gpus: u32,
        metadata: &[(String, String)],
        findings: &mut Vec<Finding>,
    ) -> Settings {
        let mut keys = self.keys;
        let applies = |rule: &&Rule| {
            let m = &rule.matches;
            m.name.as_deref().is_none_or(|pattern| glob(pattern, name))
                && m.flavor.as_deref().is_none_or(|pattern| flavor.is_some_and(|f| glob(pattern, f)))
                && m.min_gpus.is_none_or(|least| gpus >= least)
        };
        if let Some((at, rule)) = self.rules.iter().enumerate().find(|(_, rule)| applies(rule)) {
            findings.push(Finding::note(Code::PolicyRule, format!("rule {} of the policy applies", at + 1)));
            keys.replace_with(Keys {
                mode: rule.mode,
                bits: rule.bits,
                fw_cfg: rule.fw_cfg,
                headroom_gpus: rule.headroom_gpus,
            });
        }
        keys.replace_with(from_metadata(metadata, findings));
        Settings {
            mode: keys.mode.unwrap_or_default(),
            bits: keys.bits.unwrap_or_default(),
            fw_cfg: keys.fw_cfg.unwrap_or_default(),
            headroom_gpus: keys.headroom_gpus.unwrap_or_default(),
        }
    }
}

impl Keys {
    fn replace_with(&mut self, newer: Keys) {
        self.mode = newer.mode.or(self.mode);
        self.bits = newer.bits.or(self.bits);
        self.fw_cfg = newer.fw_cfg.or(self.fw_cfg);
        self.headroom_gpus = newer.headroom_gpus.or(self.headroom_gpus);
    }
}

fn from_metadata(metadata: &[(String, String)], findings: &mut Vec<Finding>) -> Keys {
    let mut keys = Keys::default();
    for (key, value) in metadata {
        let value = value.trim();
        let read = match key.as_str() {
            "mode" => word(value).map(|mode| keys.mode = Some(mode)),
            "bits" => bits_from_word(value).map(|bits| keys.bits = Some(bits)),
            "fw_cfg" => word(value).map(|fw_cfg| keys.fw_cfg = Some(fw_cfg)),
            "headroom_gpus" => value.parse().ok().map(|n| keys.headroom_gpus = Some(n)),
            _ => None,
        };
        match read {
            Some(()) => findings.push(Finding::note(
                Code::PolicyRule,
                format!("the domain's metadata sets {key} to {value}"),
            )),
            None => findings.push(Finding::warning(
                Code::PolicyRule,
                format!("the domain's metadata has `{key}` = `{value}`, which is no policy; it is ignored"),
            )),
        }
    }
    keys
}

fn word<T: serde::de::DeserializeOwned>(value: &str) -> Option<T> {
    serde_json::from_value(serde_json::Value::from(value)).ok()
}

/// Shell-style match of a whole text: `*` any characters, `?` one.
fn glob(pattern: &str, text: &str) -> bool {
    wildmatch::WildMatch::new(pattern).matches(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(texts: &[&str]) -> Result<Policy, PolicyError> {
        let mut policy = Policy::default();
        texts.iter().try_for_each(|text| policy.add(text)).map(|()| policy)
    }

    #[test]
    fn later_files_replace_single_keys_and_first_rule_wins() {
        let policy = policy(&[
            "mode = \"strict\"\nbits = 44\n[[rule]]\nmatch = { flavor = \"ao.3.*\", min_gpus = 2 }\nbits = 46\n",
            "bits = \"host\"\n[[rule]]\nmatch = { name = \"*\" }\nfw_cfg = \"never\"\n[gpus]\nalso = [\"1B36:0005\"]",
        ])
        .expect("valid");
        let settings = |flavor, gpus, metadata: &[(String, String)]| {
            policy.settings("vm", flavor, gpus, metadata, &mut Vec::new())
        };
        let b46 = PhysBits::new(46).expect("in range");
        assert_eq!(settings(Some("ao.3.4xlarge"), 2, &[]).bits, Bits::Fixed(b46));
        assert_eq!(settings(Some("ao.3.4xlarge"), 1, &[]).bits, Bits::Host);
        assert_eq!(settings(Some("ao.3.4xlarge"), 1, &[]).fw_cfg, FwCfg::Never);
        assert_eq!(settings(None, 2, &[]).mode, Mode::Strict);
        assert_eq!(settings(None, 2, &[("mode".into(), "observe".into())]).mode, Mode::Observe);
        assert!(policy.counts_as_gpu("1b36", "0005"));
    }

    #[test]
    fn metadata_that_is_no_policy_is_reported_and_ignored() {
        let mut findings = Vec::new();
        let odd = [("bits".to_owned(), "999".to_owned()), ("mod".to_owned(), "strict".to_owned())];
        let settings = Policy::default().settings("vm", None, 0, &odd, &mut findings);
        assert_eq!(settings, Settings::default());
        assert_eq!(findings.len(), 2);
    }

    #[test]
    fn broken_files_say_where() {
        let rows = [
            ("mode = \"strict\"\nbit = 44\n", (2, 1)),
            ("bits = 99", (1, 8)),
            ("bits = \"most\"", (1, 8)),
            ("mode = \"enforced\"", (1, 8)),
            ("[gpus]\nalso = [\"10de\"]", (2, 8)),
            ("[[rule]]\nbits = 46\n", (1, 1)),
            ("mode = ", (1, 8)),
        ];
        for (text, place) in rows {
            let error = policy(&[text]).expect_err(text);
            assert_eq!((error.line, error.column), place, "{text}: {error}");
            assert!(!error.message.contains('\n'));
        }
    }
}
