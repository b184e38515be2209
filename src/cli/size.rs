//! `size`.

use super::arguments::{Format, Machine, Size, Vendor};
use super::judge::{firmware, host_file};
use super::output::{Failure, Output};
use crate::domain::Domain;
use crate::flavor::Flavor;
use crate::guest::{FirmwareChoice, Source};
use crate::host::{FirmwareKind, HostFacts};
use crate::layout::{Chipset, CpuVendor};
use crate::plan::{Answer, Policy, Request, Verdict, answer};
use crate::report::{self, Paint, SizeRow, size_text};
use crate::units::PhysBits;

/// The table goes from QEMU's default to the host's width, or to this where it is not known.
const WIDEST_SHOWN: u8 = 48;

pub(super) fn size(arguments: &Size, paint: Paint) -> Result<Output, Failure> {
    if let Some(most) = arguments.maxmem.filter(|most| *most < arguments.ram) {
        return Err(Failure::new(format!("--maxmem {most} is less than --ram {}", arguments.ram)));
    }
    let given = arguments.host.as_deref().map(host_file).transpose()?;
    let choice = arguments.firmware.as_deref().map(|text| firmware(text, given.as_ref())).transpose()?;
    let bios = match &choice {
        Some(FirmwareChoice::SeaBios(_)) => true,
        Some(FirmwareChoice::File(file)) => file.kind == FirmwareKind::Seabios,
        Some(FirmwareChoice::Era(_)) | None => false,
    };
    let said = given.as_ref().and_then(|host| host.cpu.as_ref()).is_some_and(|cpu| cpu.vendor.is_some());
    let vendor = match arguments.cpu_vendor {
        Vendor::Intel => CpuVendor::Intel,
        Vendor::Amd => CpuVendor::Amd,
    };
    let flavor = Flavor {
        gpus: arguments.gpus,
        gpu: arguments.gpu,
        ram: arguments.ram,
        max_memory: arguments.maxmem.map(|most| (most, arguments.slots)),
        chipset: match arguments.machine {
            Machine::Q35 => Chipset::Q35,
            Machine::Pc => Chipset::I440fx,
        },
        uefi: !bios,
        cpu_vendor: (!said).then_some(vendor),
    };
    let host = flavor.host(given.as_ref());
    let ask = |bits| ask(&flavor, &host, choice.as_ref(), bits);
    let (domain, answer) = ask(None)?;
    let stdout = match arguments.format {
        Format::Json => report::Check::new(&domain, &answer).to_text()?,
        Format::Human => {
            let known = host.cpu.as_ref().and_then(|cpu| cpu.phys_bits);
            let widest = known.unwrap_or(WIDEST_SHOWN);
            let widths =
                (PhysBits::QEMU_DEFAULT.get()..=widest).filter_map(|bits| PhysBits::new(bits.into()));
            let row = |bits| ask(Some(bits)).map(|(_, answer)| SizeRow { bits, answer });
            let rows = widths.map(row).collect::<Result<Vec<_>, _>>()?;
            size_text(&domain, &answer, &rows, paint)
        }
    };
    Ok(Output { no: answer.plan.verdict != Verdict::Fits, ..Output::text(stdout) })
}

fn ask(
    flavor: &Flavor,
    host: &HostFacts,
    firmware: Option<&FirmwareChoice>,
    bits: Option<PhysBits>,
) -> Result<(Domain, Answer), Failure> {
    let xml = flavor.xml(bits);
    let domain = Domain::parse(xml.as_bytes()).map_err(|error| Failure::new(format!("size: {error}")))?;
    let answer = answer(&Request {
        domain: &domain,
        host,
        host_is: Source::Catalogue,
        policy: &Policy::default(),
        firmware,
        assume_gpu: None,
    });
    Ok((domain, answer))
}
